"""Admitted uploads, second moments and models: the one module that knows where they are kept.

concepts/<digest>.safetensors     an admitted upload, by content digest, until it is withdrawn
moments/                          second moments of activations, kept between fusions
models/<round>/                   the published model of a round
models/<round>.own/              own changes of its concepts, a folder each
models/<round>-candidate/         its candidate, until it is published
models/<round>-aside-<n>/         what lay in a model's place and was not it; never handed out
sheets/<round>-<digest>/          what a round's model draws, by the digests of concepts

With a store (`store.py`), uploads are there alone. Moments and published models are there too, and
what is in the folder is a copy that may be lost; candidates are made again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from mos_common.digests import digest_of_bytes
from mos_common.errors import StateError
from mos_common.files import could_not_write, replacing_file, write_atomically
from mos_common.model_files import MANIFEST
from mos_common.own.names import SUFFIX, beside, folder_name, own_folder
from mos_server.state.store import Store, Stored, StoreError
from mos_server.state.stored_models import delete_stored, fetch_model, keep_model, stored_manifest

_SUFFIX = ".safetensors"
FOLDERS = ("concepts", "moments", "models")


@dataclass(frozen=True)
class Artefacts:
    """The artefacts of the state folder `root`, kept in `store` if there is one."""

    root: Path
    store: Store | None = None

    def put_concept(self, digest: str, data: bytes) -> None:
        """Keep an upload. It survives a crash once this returns.

        Raises:
            StateError: the upload cannot be written.

        """
        if self.store is not None:
            self.store.put(_concept(digest), data)
        else:
            write_atomically(self.concept_file(digest), data, mode=0o600)

    def read_concept(self, digest: str) -> bytes:
        """Return the bytes of a kept upload.

        Raises:
            StateError: the file is missing, or cannot be read.

        """
        reason, data = "No such object", None
        if self.store is not None:
            data = self.store.get(_concept(digest))
        else:
            try:
                data = self.concept_file(digest).read_bytes()
            except OSError as error:
                reason = error.strerror or str(error)
        if data is None:
            raise StateError(
                f"{self.place_of_concept(digest)} cannot be read ({reason}): restore it from a backup, or withdraw it"
            )
        return data

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
        if self.store is not None:
            self.store.delete([_concept(digest), *(key for key in self.store.entries("moments/") if digest in key)])

    def rewrite_concept(self, digest: str, change: Callable[[Path], None]) -> None:
        """Have `change` rewrite the file of a kept upload; what it raises changes nothing.

        Raises:
            StateError: the file cannot be written.

        """
        if self.store is None:
            change(self.concept_file(digest))
            return
        with tempfile.TemporaryDirectory(prefix="mos-concept-") as folder:
            file, before = Path(folder) / f"{digest}{_SUFFIX}", self.read_concept(digest)
            file.write_bytes(before)
            change(file)
            if (after := file.read_bytes()) != before:
                self.store.put(_concept(digest), after)

    def concepts(self) -> list[str]:
        """Return the digests of all kept uploads."""
        if self.store is not None:
            return [Path(key).stem for key in self.store.entries("concepts/") if key.endswith(_SUFFIX)]
        return sorted(path.stem for path in (self.root / "concepts").glob(f"*{_SUFFIX}"))

    def concept_file(self, digest: str) -> Path:
        """Return the path of a kept upload in the folder."""
        return self.root / "concepts" / f"{digest}{_SUFFIX}"

    def place_of_concept(self, digest: str) -> str:
        """Return where a kept upload is, for messages."""
        return str(self.concept_file(digest)) if self.store is None else f"{self.store.url}/{_concept(digest)}"

    @property
    def moments(self) -> Path:
        """The folder in which fusion keeps second moments."""
        return self.root / "moments"

    @property
    def sheets(self) -> Path:
        """The folder in which contact sheets are kept."""
        return self.root / "sheets"

    @contextmanager
    def moments_of(self, digests: Collection[str]) -> Iterator[Path]:
        """Yield the folder of second moments, with those of some concepts that the store has.

        What is recorded in the block goes into the store, also if the block fails.

        Raises:
            StateError: the store cannot be used.

        """
        if self.store is None:
            yield self.moments
            return
        there = self.store.entries("moments/")
        for key in there:
            name = key.removeprefix("moments/")
            if name.partition("-")[0] in {*digests, "ordinary"} and not (self.moments / name).is_file():
                with replacing_file(self.moments / name) as file:
                    self.store.get_file(key, file)
        try:
            yield self.moments
        except BaseException:
            with suppress(StoreError):  # the reason is what failed in the block
                self._store_moments(there)
            raise
        self._store_moments(there)

    def _store_moments(self, there: Mapping[str, Stored]) -> None:
        """Store what the folder has and the store has not, or has of another size."""
        assert self.store is not None
        for path in sorted(self.moments.glob(f"[!.]*{_SUFFIX}")):
            known = there.get(f"moments/{path.name}")
            if known is None or known.size != path.stat().st_size:
                self.store.put_file(f"moments/{path.name}", path)

    def model(self, round_id: str) -> Path:
        """Return the folder of a round's published model; it exists once it is published."""
        return self.root / "models" / round_id

    def candidate(self, round_id: str) -> Path:
        """Return the folder of a round's candidate; it exists from fusion to publication."""
        return self.root / "models" / f"{round_id}-candidate"

    def keep_model(self, round_id: str) -> None:
        """Keep a round's model, which lies in its folder, in the store, if there is one.

        Raises:
            StateError: another model is kept there, or the store cannot be used.

        """
        if self.store is not None:
            keep_model(self.store, self.model(round_id))

    def fetch_model(self, round_id: str, digest: str | None = None) -> None:
        """Make a round's folder the model that the store has, if there is a store and it has one.

        With `digest`, of its manifest, nothing is asked of the store if the folder has that one.

        Raises:
            StateError: what the store has is damaged, or the store cannot be used.

        """
        if self.store is None or (digest is not None and self._manifest_here(round_id) == digest):
            return
        # The server and the process of a round may want the same one at once.
        with FileLock(self.root / "fetch.lock", mode=0o600):
            if digest is None or self._manifest_here(round_id) != digest:
                fetch_model(self.store, self.model(round_id))

    def manifest(self, name: str) -> bytes | None:
        """Return the manifest of a model, from its folder or else from the store; None: neither.

        Raises:
            StateError: the store cannot be used.

        """
        try:
            return (self.model(name) / MANIFEST).read_bytes()
        except OSError:
            return None if self.store is None else stored_manifest(self.store, name)

    def delete_model(self, round_id: str) -> None:
        """Erase a model and its own changes, in the folder and in the store.

        Raises:
            StateError: it cannot be deleted.

        """
        if self.store is not None:
            delete_stored(self.store, round_id)
        try:
            if self.store is None or self.model(round_id).exists():
                shutil.rmtree(self.model(round_id))
            shutil.rmtree(beside(self.model(round_id)), ignore_errors=True)
        except OSError as error:
            raise could_not_write(self.model(round_id), error) from error

    def set_model_aside(self, round_id: str) -> Path:
        """Rename what lies where a round's model belongs, and return its new path.

        In the store it is no model any more: its copy here is what is left of it.

        Raises:
            StateError: it cannot be renamed.

        """
        folder = self.model(round_id)
        number = 1
        while (aside := folder.with_name(f"{round_id}-aside-{number}")).exists():
            number += 1
        try:
            folder.rename(aside)
        except OSError as error:
            raise could_not_write(folder, error) from error
        if self.store is not None:
            delete_stored(self.store, round_id)
        return aside

    def remove_own(self, round_id: str, tokens: Collection[str]) -> None:
        """Remove the own changes of some concepts from beside a model.

        Raises:
            StateError: they cannot be deleted.

        """
        remove_own(self.model(round_id), tokens)
        for token in sorted(tokens) if self.store is not None else ():
            self.erase_stored(f"models/{round_id}{SUFFIX}/{folder_name(token)}")

    def erase_stored(self, path: str) -> None:
        """Erase the object `path` of the store, and everything below it, if there is a store."""
        if self.store is not None:
            keys = self.store.entries(path)
            self.store.delete([key for key in keys if key == path or key.startswith(f"{path}/")])

    def _manifest_here(self, round_id: str) -> str | None:
        try:
            return digest_of_bytes((self.model(round_id) / MANIFEST).read_bytes())
        except OSError:
            return None


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


def _concept(digest: str) -> str:
    return f"concepts/{digest}{_SUFFIX}"
