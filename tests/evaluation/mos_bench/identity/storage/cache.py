"""A cache of drawings, their features and the answers of witnesses, keyed by digest.

It is one SQLite file. A write is a transaction, so a kill leaves whole entries only, and several
processes may write at once. A key covers everything that made an entry; the value is bytes.

    drawings  base, attached changes, prompt with its words, seed, regions, sampler -> PNG
    features  the drawing, the part of it, the scorer -> float16 vector
    answers   the drawing, the part of it, the question, the witnesses' version -> JSON
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
    """Return the sha256 of any JSON value."""
    return digest_of_json(parts)


def drawn_on(base: Base) -> str:
    """Return the digest of the model, the sampler and the guidance of a base."""
    guidance = base.preset.guidance, base.force_zeros_for_empty_prompt
    return key_of(base.fingerprint, sampler_of(base.scheduler), *guidance)


class Cache:
    """Three tables that map digests to bytes."""

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
        """Close the file."""
        self._database.close()

    def missing(self, table: Table, keys: Sequence[str]) -> list[str]:
        """Return those of `keys` that are not in the table, each once."""
        stored: set[str] = set()
        for start in range(0, len(keys), AT_ONCE):
            part = list(keys[start : start + AT_ONCE])
            query = f"SELECT key FROM {table} WHERE key IN ({','.join('?' * len(part))})"
            stored.update(key for (key,) in self._database.execute(query, part))
        return [key for key in dict.fromkeys(keys) if key not in stored]

    def put(self, table: Table, values: Mapping[str, bytes]) -> None:
        """Store entries in one transaction."""
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", list(values.items()))
        self._database.execute("COMMIT")

    def get(self, table: Table, key: str) -> bytes:
        """Return one existing entry."""
        row = self._database.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        value: bytes = row[0]
        return value

    def picture(self, key: str) -> Float[Tensor, "3 h w"]:
        """Return a drawing in [-1, 1]."""
        return picture_from(self.get("drawings", key))

    def vector(self, key: str) -> Float[Tensor, " features"]:
        """Return a vector of features."""
        return torch.from_numpy(np.frombuffer(self.get("features", key), np.float16).astype(np.float32))

    def answer(self, key: str) -> Any:
        """Return a witness's answer."""
        return json.loads(self.get("answers", key))


def picture_bytes(picture: Float[Tensor, "3 h w"]) -> bytes:
    """Return a picture in [-1, 1] as PNG."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=1)
    return png.getvalue()


def picture_from(data: bytes) -> Float[Tensor, "3 h w"]:
    """Return the picture of a PNG in [-1, 1]."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def vector_bytes(vector: Float[Tensor, " features"]) -> bytes:
    """Return features as float16 bytes: cosines keep at least three decimals."""
    return vector.numpy().astype(np.float16).tobytes()
