"""Admitted uploads, second moments and models: the one module that knows where they are kept.

concepts/<digest>.safetensors     an admitted upload, by content digest, until it is withdrawn
moments/                          second moments of activations, kept between fusions
models/<round>/                   the published model of a round
models/<round>.own/              own changes of its concepts, a folder each
models/<round>-candidate/         its candidate, until it is published
models/<round>-aside-<n>/         what lay in a model's place and was not it; never handed out
sheets/<round>-<digest>/          what a round's model draws, by the digests of concepts
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mos_common.errors import StateError
from mos_common.files import could_not_write, write_atomically
from mos_common.own.names import beside, own_folder

_SUFFIX = ".safetensors"
FOLDERS = ("concepts", "moments", "models")


@dataclass(frozen=True)
class Artefacts:
    """The artefacts of the state folder `root`."""

    root: Path

    def put_concept(self, digest: str, data: bytes) -> None:
        """Keep an upload. It survives a crash once this returns.

        Raises:
            StateError: the upload cannot be written.

        """
        write_atomically(self.concept_file(digest), data, mode=0o600)

    def read_concept(self, digest: str) -> bytes:
        """Return the bytes of a kept upload.

        Raises:
            StateError: the file is missing, or cannot be read.

        """
        path = self.concept_file(digest)
        try:
            return path.read_bytes()
        except OSError as error:
            raise StateError(
                f"{path} cannot be read ({error.strerror}): restore it from a backup, or withdraw it"
            ) from error

    def delete_concept(self, digest: str) -> None:
        """Erase a kept upload, its second moments and its pictures on contact sheets.

        Raises:
            StateError: a file cannot be deleted.

        """
        try:
            # With a dot in front: the rest of a write that a crash cut short.
            halves = self.concept_file(digest).parent.glob(f".{digest}{_SUFFIX}.*")
            made_of_it = [*self.moments.rglob(f"*{digest}*"), *self.sheets.rglob(f"*{digest}*")]
            for path in [self.concept_file(digest), *halves, *made_of_it]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise could_not_write(self.root, error) from error

    def concepts(self) -> list[str]:
        """Return the digests of all kept uploads."""
        return sorted(path.stem for path in (self.root / "concepts").glob(f"*{_SUFFIX}"))

    def concept_file(self, digest: str) -> Path:
        """Return the path of a kept upload."""
        return self.root / "concepts" / f"{digest}{_SUFFIX}"

    @property
    def moments(self) -> Path:
        """The folder in which fusion keeps second moments."""
        return self.root / "moments"

    @property
    def sheets(self) -> Path:
        """The folder in which contact sheets are kept."""
        return self.root / "sheets"

    def model(self, round_id: str) -> Path:
        """Return the folder of a round's published model; it exists once it is published."""
        return self.root / "models" / round_id

    def candidate(self, round_id: str) -> Path:
        """Return the folder of a round's candidate; it exists from fusion to publication."""
        return self.root / "models" / f"{round_id}-candidate"

    def delete_model(self, round_id: str) -> None:
        """Erase the folder of a model that was not published.

        Raises:
            StateError: it cannot be deleted.

        """
        try:
            shutil.rmtree(self.model(round_id))
            shutil.rmtree(beside(self.model(round_id)), ignore_errors=True)
        except OSError as error:
            raise could_not_write(self.model(round_id), error) from error

    def set_model_aside(self, round_id: str) -> Path:
        """Rename what lies where a round's model belongs, and return its new path.

        Raises:
            StateError: it cannot be renamed.

        """
        folder = self.model(round_id)
        number = 1
        while (aside := folder.with_name(f"{round_id}-aside-{number}")).exists():
            number += 1
        try:
            return folder.rename(aside)
        except OSError as error:
            raise could_not_write(folder, error) from error


def remove_own(model: Path, tokens: Collection[str]) -> list[str]:
    """Remove the own changes of some concepts from beside a model; return whose were there.

    Raises:
        StateError: they cannot be deleted.

    """
    removed = [token for token in sorted(tokens) if own_folder(model, token).is_dir()]
    try:
        for token in removed:
            shutil.rmtree(own_folder(model, token))
        if removed and not any(beside(model).iterdir()):
            beside(model).rmdir()
    except OSError as error:
        raise could_not_write(beside(model), error) from error
    return removed
