"""A participant's state folder, and the settings it was started with.

node_key, node_key.pub      who this participant is
kit.json, enrolled.json     which federation, and under what name
trust.json                  whom it trusts: see mos_common/trust.py
settings.json               what `join` was asked for
concepts/                   tuned concept files; none is tuned twice
pictures.json               digests of the pictures that were tuned on
what-leaves.txt             every tensor that is sent when the server asks
consent.json                the digest of the file that `join --ask` may send
activity.json               what `join` does at the moment, or did last
round.json                  the server's news of the round, while `join` runs
steering                    `pause` or `stop`, while a tuning is to do that
tuning/                     checkpoints of a run under way
models/, candidates/        downloaded models; a candidate while it is scored
flower/, ca.crt             the SuperNode's own files
lock                        held while `join` runs
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mos_client.pictures.folder import pictures_digest
from mos_client.tuning.request import TuneRequest
from mos_common.digests import digest_of_json
from mos_common.errors import MosError, StateError
from mos_common.files import canonical_json, could_not_write, write_atomically

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Session:
    """What `join` was asked for, and the folder that everything of this participant lies in.

    `fingerprint` is that of the base model that the operator fuses on; `request.base` is where this
    participant has it. The settings in `request` are texts, as they were typed.
    """

    state: Path
    fingerprint: str
    request: TuneRequest
    own: bool = False

    @property
    def node_key(self) -> Path:
        """The private key, in the format that the SuperNode reads."""
        return self.state / "node_key"

    @property
    def models(self) -> Path:
        """Downloaded models, a folder each."""
        return self.state / "models"

    def downloaded(self) -> list[Path]:
        """Return the downloaded models, newest first."""
        found = [path for path in self.models.glob("round-*") if path.is_dir() and "." not in path.name]
        return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)

    @property
    def tuning(self) -> Path:
        """Checkpoints of a tuning under way."""
        return self.state / "tuning"

    def token(self, participant: str) -> str:
        """Return the concept's name in fused models, such as "<alice/cat>"."""
        return f"<{participant}/{self.request.concept[1:]}"

    def save(self) -> None:
        """Write `settings.json`: the ClientApp reads it wherever it runs."""
        values = asdict(self.request) | {"state": self.state, "fingerprint": self.fingerprint}
        if values["mark"] is None:
            del values["mark"]  # release 0.1.0 reads the file too, and knows no mark
        if self.own:
            values["own"] = True
        texts = {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in values.items()}
        write_atomically(self.state / SETTINGS, canonical_json(texts) + b"\n")

    @classmethod
    def load(cls, state: Path) -> Session:
        """Return the session of a state folder.

        Raises:
            StateError: there is none.

        """
        try:
            values = json.loads((state / SETTINGS).read_bytes())
            folder, fingerprint = Path(values.pop("state")), values.pop("fingerprint")
            own = values.pop("own", False) is True
            return cls(folder, fingerprint, TuneRequest(**{**values, "images": Path(values["images"])}), own)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MosError) as error:
            raise StateError(f"{state} is not a participant's state folder: run mos-client join with a kit") from error

    @property
    def has_concepts(self) -> bool:
        """True if anything was tuned in this state folder."""
        return any((self.state / "concepts").glob("*.safetensors"))

    def cached(self) -> Path:
        """Return the path of the concept file of the pictures as they are now.

        Raises:
            PicturesError: they cannot be read.

        """
        tuned_on, held_back = self.request.pictures()
        return self.named(pictures_digest([*tuned_on, *held_back]))

    def named(self, pictures: str) -> Path:
        """Return the path of a concept file, named by pictures' digest, settings and base model."""
        request = self.request
        made_of = [
            request.concept,
            request.class_word,
            self.fingerprint,
            request.steps,
            request.seed,
            request.author,
            request.licence,
            pictures,
            dict(request.settings),
        ]
        name = f"{request.concept.strip('<>')}-{digest_of_json(made_of)[:16]}.safetensors"
        return self.state / "concepts" / name


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Hold the lock of a state folder, so that one `join` runs on it; it ends with the process.

    Raises:
        StateError: another one runs, or the folder cannot be written.

    """
    lock = FileLock(state / "lock", timeout=0)
    try:
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
        lock.acquire()
    except Timeout as error:
        raise StateError(
            f"another mos-client join is running on {state}: stop it first, or give this one another --state"
        ) from error
    except OSError as error:
        raise could_not_write(state, error) from error
    try:
        yield
    finally:
        lock.release()
