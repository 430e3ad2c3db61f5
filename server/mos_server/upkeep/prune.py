"""Find what a state folder can do without, and remove it.

It is safe while a server runs and while a round is under way: what those use is left where it is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from mos_common.errors import StateError
from mos_common.files import could_not_write
from mos_common.own.names import SUFFIX, beside, folder_name
from mos_server.state.folder import State, locked, serving_process
from mos_server.state.journal import Journal
from mos_server.state.records import HELD_BACK, PUBLISHED
from mos_server.state.stored_models import stored_models
from mos_server.upkeep.stored import unneeded_in_store

CANDIDATE = "-candidate"
# Files are written beside their place, under a name with a dot, and renamed at once. What is still
# there after an hour belongs to a process that died.
_LEFT_AFTER_S = 3600.0


@dataclass(frozen=True)
class Superfluous:
    """A file or folder that nobody needs: its path inside the state folder, its size, and why.

    `stored` if it is in the store of artefacts, where the path is the beginning of keys.
    """

    path: Path
    size: int
    why: str
    stored: bool = False


def superfluous(state: State, journal: Journal, *, keep: int | None = None) -> list[Superfluous]:
    """Return what can be removed.

    `keep` is the number of published models to keep, the newest; None: all of them. The newest is
    always kept, and so is one that a participant is fetching at the moment.

    Raises:
        StateError: the folder cannot be read.

    """
    try:
        found = [
            *_leftovers(state),
            *_unneeded_by_concepts(state, journal),
            *_old_candidates(state, journal),
            *_unneeded_own(state, journal),
            *_old_sheets(state),
            *(_old_models(state, journal, keep) if keep is not None else ()),
            *(_copies(state, journal, 1 if keep is None else keep) if state.artefacts.store is not None else ()),
        ]
        here = [Superfluous(path.relative_to(state.path), size_of(path), why) for path, why in found]
        stored = unneeded_in_store(state, journal, keep)
        return here + [Superfluous(Path(each.path), each.size, each.why, stored=True) for each in stored]
    except OSError as error:
        raise could_not_write(state.path, error) from error


def remove(state: State, journal: Journal, items: list[Superfluous]) -> int:
    """Remove what was found, write that into the audit, and return the number of bytes.

    Raises:
        StateError: something cannot be removed.

    """
    for item in items:
        if item.stored:
            state.artefacts.erase_stored(item.path.as_posix())
        else:
            remove_path(state.path / item.path)
    size = sum(item.size for item in items)
    models = [item.path.name for item in items if item.path.parent.name == "models"]
    details = {"files": len(items), "bytes": size, "models": models}
    if items:
        journal.audit.add("pruned", details=details)
    return size


def empty_flower(state: State, *, dry_run: bool = False) -> int | None:
    """Remove Flower's files, which a server makes again, and return their size in bytes.

    They hold only the messages of a running round, whose participants are then asked again. Return
    None, and remove nothing, while a server runs.

    Raises:
        StateError: they cannot be removed.

    """
    if serving_process(state) is not None:
        return None
    with locked(state):
        size = size_of(state.flower)
        if not dry_run:
            empty_flower_files(state)
    return size


def empty_flower_files(state: State) -> None:
    """Remove Flower's files; the caller holds the lock of the state folder."""
    for path in state.flower.iterdir() if state.flower.is_dir() else ():
        remove_path(path)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it is there.

    Raises:
        StateError: it cannot be removed.

    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # its process has removed it meanwhile
    except OSError as error:
        raise could_not_write(path, error) from error


def size_of(path: Path) -> int:
    """Return the number of bytes in a file, or in all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())


def _leftovers(state: State) -> Iterator[tuple[Path, str]]:
    before = time.time() - _LEFT_AFTER_S
    for folder in (state.path, *(state.path / name for name in ("concepts", "moments", "models", "pki", "log"))):
        for path in sorted(folder.glob(".*")):
            touched = max(each.lstat().st_mtime for each in [path, *(path.rglob("*") if path.is_dir() else ())])
            if touched < before:
                yield path, "left by a process that ended while it wrote"


def _unneeded_by_concepts(state: State, journal: Journal) -> Iterator[tuple[Path, str]]:
    # Files first: what is here now, of a concept that the journal does not have later, is nobody's.
    moments = sorted(state.artefacts.moments.rglob("[!.]*.safetensors"))
    before = time.time() - _LEFT_AFTER_S
    concepts = sorted((state.path / "concepts").glob("[!.]*.safetensors"))  # none with a store
    old = [path for path in concepts if path.stat().st_mtime < before]
    kept = {upload.digest for upload in journal.uploads.kept()}
    for path in moments:
        whose = path.stem.partition("-")[0]
        if whose not in kept and whose != "ordinary":
            yield path, "second moments of a concept that is not kept"
    for path in old:
        if path.stem not in kept:
            yield path, "a concept file that the journal does not have"


def _old_candidates(state: State, journal: Journal) -> Iterator[tuple[Path, str]]:
    rounds = journal.rounds.all()
    needed = {each.id for each in rounds if each.unfinished}
    if rounds and rounds[-1].status == HELD_BACK:
        needed.add(rounds[-1].id)  # its operator may still want to look at it
    for folder in sorted((state.path / "models").glob(f"round-*{CANDIDATE}")):
        if folder.name.removesuffix(CANDIDATE) not in needed:
            yield folder, "the candidate of a round that has ended"


def _unneeded_own(state: State, journal: Journal) -> Iterator[tuple[Path, str]]:
    """Yield own changes that are served no more: of withdrawn concepts, and beside no model."""
    for folder in sorted((state.path / "models").glob(f"[!.]*{SUFFIX}")):
        round_id = folder.name.removesuffix(SUFFIX)
        if any(each.id == round_id and each.unfinished for each in journal.rounds.all()):
            continue  # its model is written next
        if not state.artefacts.model(round_id).is_dir():
            yield folder, "own changes beside no model"
            continue
        agreed = {folder_name(upload.token) for upload in journal.uploads.admitted(round_id) if upload.own}
        for each in sorted(folder.iterdir()):
            if each.name not in agreed:
                yield each, "own changes of a concept that was withdrawn"


def _old_sheets(state: State) -> Iterator[tuple[Path, str]]:
    for folder in sorted(state.artefacts.sheets.glob("round-*")):
        round_id = folder.name.rpartition("-")[0]
        if not (state.artefacts.model(round_id).is_dir() or state.artefacts.candidate(round_id).is_dir()):
            yield folder, "the contact sheet of a model that is gone"


def _old_models(state: State, journal: Journal, keep: int) -> Iterator[tuple[Path, str]]:
    published = [each.id for each in journal.rounds.all() if each.status == PUBLISHED]
    stored = stored_models(state.artefacts.store) if state.artefacts.store is not None else ()
    there = [
        state.artefacts.model(name) for name in published if state.artefacts.model(name).is_dir() or name in stored
    ]
    old = [folder for folder in there[: -max(keep, 1)] if folder.is_dir()]
    fetched = _open_files(state) if old else set()
    for folder in old:
        if not any({folder, beside(folder)}.intersection(path.parents) for path in fetched):
            yield folder, f"a published model older than the newest {keep}"
            if beside(folder).is_dir():
                yield beside(folder), f"own changes beside a published model older than the newest {keep}"


def _copies(state: State, journal: Journal, keep: int) -> Iterator[tuple[Path, str]]:
    """Yield copies of models that the store has: what is fetched again comes from there."""
    assert state.artefacts.store is not None
    stored = stored_models(state.artefacts.store)
    published = [each.id for each in journal.rounds.all() if each.status == PUBLISHED and each.id in stored]
    # Those before the newest `keep` are gone from both, by `_old_models`.
    kept = published[-keep:-1] if keep > 1 else published[:-1]
    fetched = _open_files(state)
    for name in kept:
        for folder in (state.artefacts.model(name), beside(state.artefacts.model(name))):
            if folder.is_dir() and not any(folder in path.parents for path in fetched):
                yield folder, "a copy of what is in the store"


def _open_files(state: State) -> set[Path]:
    """Return the files that the running server has open, such as those being downloaded."""
    process = serving_process(state)
    if process is None:
        return set()
    try:
        return {Path(file.path) for file in psutil.Process(process).open_files()}
    except psutil.NoSuchProcess:
        return set()
    except psutil.AccessDenied as error:
        raise StateError(
            f"a server of another user runs on {state.path}: run this as that user, or without --keep"
        ) from error
