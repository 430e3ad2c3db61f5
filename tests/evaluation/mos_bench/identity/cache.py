"""What was made before is not made again: drawings, their features and what witnesses saw in them, by digest.

One SQLite file. A write is a transaction, so a kill at any moment leaves whole entries only, and several processes may fill it at
once. The key says everything that made an entry; the value is bytes.

    drawing   base, what was attached (content digests), prompt with its words, seed, regions, how it was drawn -> PNG
    features  the drawing, the part of it, the scorer -> float16 vector
    seen      the drawing, the part of it, what was asked, the witnesses' version -> JSON
"""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mos_common.base_model import Base
from mos_common.digests import digest_of_json
from mos_common.errors import StateError
from mos_common.fingerprint import sampler_of

Table = Literal["drawings", "features", "answers"]
TABLES: tuple[Table, ...] = ("drawings", "features", "answers")
AT_ONCE = 500
WAIT_S = 60.0


def key_of(*parts: object) -> str:
    """Sha256 of anything that JSON can say."""
    return digest_of_json(parts)


def drawn_on(base: Base) -> str:
    """Return the digest of what a base brings to a drawing: the model, the sampler and its own guidance."""
    return key_of(base.fingerprint, sampler_of(base.scheduler), base.preset.guidance)


class Cache:
    """A mapping of three tables from digest to bytes."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            for table in TABLES:
                self._database.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID"
                )
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"{path} cannot be used as a cache ({error}): remove it, or give another --out") from error

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def missing(self, table: Table, keys: Sequence[str]) -> list[str]:
        """Those of `keys` that are not there, each once."""
        there: set[str] = set()
        for start in range(0, len(keys), AT_ONCE):
            part = list(keys[start : start + AT_ONCE])
            asked = f"SELECT key FROM {table} WHERE key IN ({','.join('?' * len(part))})"
            there.update(key for (key,) in self._database.execute(asked, part))
        return [key for key in dict.fromkeys(keys) if key not in there]

    def put(self, table: Table, values: Mapping[str, bytes]) -> None:
        """Keep some entries: all of them, or after a kill none."""
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", list(values.items()))
        self._database.execute("COMMIT")

    def get(self, table: Table, key: str) -> bytes:
        """One entry, which is there."""
        row = self._database.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        value: bytes = row[0]
        return value

    def picture(self, key: str) -> Float[Tensor, "3 h w"]:
        """A drawing, in [-1, 1]."""
        return picture_from(self.get("drawings", key))

    def vector(self, key: str) -> Float[Tensor, " features"]:
        """Features."""
        return torch.from_numpy(np.frombuffer(self.get("features", key), np.float16).astype(np.float32))

    def answer(self, key: str) -> Any:
        """What was seen."""
        return json.loads(self.get("answers", key))


def picture_bytes(picture: Float[Tensor, "3 h w"]) -> bytes:
    """A picture in [-1, 1] as PNG."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=1)
    return png.getvalue()


def picture_from(data: bytes) -> Float[Tensor, "3 h w"]:
    """The other way round."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def vector_bytes(vector: Float[Tensor, " features"]) -> bytes:
    """Features, rounded to half: cosines keep three decimals and more."""
    return vector.numpy().astype(np.float16).tobytes()
