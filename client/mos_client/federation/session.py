"""What one participant brings to a federation, and the state folder it keeps: key, enrolment, concept, downloads.

node_key, node_key.pub      who this participant is
kit.json, enrolled.json     which federation, and under what name
settings.json               what `join` was told
concepts/                   what was tuned, once and for all
what-leaves.txt             every tensor that is sent when the server asks
tuning/                     checkpoints of a run under way
models/, candidates/        downloaded models; a candidate while it is scored
flower/, ca.crt             the SuperNode's own files
lock                        held while `join` runs
"""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mos_client.pictures.folder import pictures_digest, split_pictures
from mos_common.digests import digest_of_json
from mos_common.errors import BaseModelError, StateError
from mos_common.files import canonical_json, could_not_write, write_atomically

if TYPE_CHECKING:
    from mos_common.base_model import Base

SETTINGS = "settings.json"
_TUNING = threading.Lock()
OnStep = Callable[[Any], None]


@dataclass(frozen=True)
class Session:
    """What `join` was told; `state` is the folder that everything of this participant lies in. `settings` are those of tuning by name.

    `fingerprint` is that of the base model that the operator fuses on; `base` is where this participant has it.
    """

    state: Path
    images: Path
    concept: str
    class_word: str
    base: str
    fingerprint: str
    steps: int | None = None
    seed: int = 0
    author: str = ""
    licence: str = ""
    device: str | None = None
    dtype: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    vram: float | None = None

    @property
    def node_key(self) -> Path:
        """The private key, in the format that the SuperNode reads."""
        return self.state / "node_key"

    @property
    def kit(self) -> Path:
        """The kit this participant joined with."""
        return self.state / "kit.json"

    @property
    def models(self) -> Path:
        """Downloaded models, a folder each."""
        return self.state / "models"

    def save(self) -> None:
        """Write `settings.json`: the ClientApp reads it wherever it runs."""
        values = {k: str(v.resolve()) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        write_atomically(self.state / SETTINGS, canonical_json(values) + b"\n")

    @classmethod
    def load(cls, state: Path) -> Session:
        """The session of a state folder.

        Raises:
            StateError: there is none.

        """
        try:
            values = json.loads((state / SETTINGS).read_bytes())
            return cls(**{**values, "state": Path(values["state"]), "images": Path(values["images"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StateError(f"{state} is not a participant's state folder: run mos-client join with a kit") from error

    def cached(self) -> Path:
        """Where this session's concept file is kept: another folder of pictures, setting or base model is another file."""
        tuned_on, held_back = split_pictures(self.images)
        made_of = [
            self.concept,
            self.class_word,
            self.fingerprint,
            self.steps,
            self.seed,
            self.author,
            self.licence,
            pictures_digest([*tuned_on, *held_back]),
            dict(self.settings),
        ]
        digest = digest_of_json(made_of)[:16]
        return self.state / "concepts" / f"{self.concept.strip('<>')}-{digest}.safetensors"

    def current(self) -> Session:
        """Return the session under today's fingerprint of its base, which is loaded only if the session has an old one.

        Raises:
            BaseModelError: `base` is not the operator's model.

        """
        from mos_common.fingerprint import is_legacy

        if not is_legacy(self.fingerprint):
            return self
        from mos_common.base_model import load_base

        return self.rekeyed(load_base(self.base, device=self.device, dtype=self.dtype))

    def rekeyed(self, base: Base) -> Session:
        """Return the session under the fingerprint of `base`, and put that into settings, kit and concept file that have the old one.

        The concept that was tuned is found again under its new name, and its tensors stay as they are.

        Raises:
            BaseModelError: `base` is not the operator's model.

        """
        from mos_client.tuning.tune_folder import progress_picture
        from mos_common.concept_file import rekey_concept
        from mos_common.fingerprint import is_base, why_not
        from mos_common.kit import read_kit, write_kit

        if not is_base(self.fingerprint, base):
            raise BaseModelError(
                f"{self.base} is base model {base.fingerprint[:12]}, this federation fuses on {self.fingerprint[:12]}"
                f"{why_not(self.fingerprint, base)}: join with the model that the operator uses (--base)"
            )
        session = replace(self, fingerprint=base.fingerprint)
        kept, path = replace(self, fingerprint=base.legacy_fingerprint).cached(), session.cached()
        if kept.is_file() and not path.is_file():
            rekey_concept(kept, base)
            kept.rename(path)
            if progress_picture(kept).is_file():
                progress_picture(kept).rename(progress_picture(path))
        if (self.state / SETTINGS).is_file() and session != self:
            session.save()
        if self.kit.is_file() and (kit := read_kit(self.kit)).base == base.legacy_fingerprint:
            write_kit(kit.model_copy(update={"base": base.fingerprint}), self.kit)
        return session

    def concept_file(self, on_step: OnStep = lambda step: None, begun: threading.Event | None = None) -> Path:
        """The concept file, tuned now if it has never been. A second caller waits for the first one's.

        `begun` is set once this call is the first: whoever shows progress should be it.

        Raises:
            BaseModelError: `base` is not the operator's model; nothing is tuned on it.

        """
        with _TUNING:
            if begun is not None:
                begun.set()
            path = self.cached()
            if path.is_file():
                return path
            from mos_client.tuning.tune_folder import tune_folder
            from mos_common.base_model import load_base

            base = load_base(self.base, device=self.device, dtype=self.dtype)
            path = self.rekeyed(base).cached()
            if path.is_file():
                return path
            return tune_folder(
                self.images,
                concept=self.concept,
                class_word=self.class_word,
                base=base,
                out=path,
                work=self.state / "tuning",
                steps=self.steps,
                seed=self.seed,
                settings=self.settings,
                vram=self.vram,
                author=self.author,
                licence=self.licence,
                on_step=on_step,
            )


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Be the one `join` of a state folder; the lock is gone with the process, however it ends.

    Raises:
        StateError: another one runs, or the folder cannot be written.

    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
        file = (state / "lock").open("a")
    except OSError as error:
        raise could_not_write(state, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                f"another mos-client join is running on {state}: stop it first, or give this one another --state"
            ) from error
        yield
