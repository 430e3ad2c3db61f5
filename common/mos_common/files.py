"""Atomic writing of files and folders: a crash leaves the old version or the new one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mos_common.errors import StateError

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)
"""Errors of a disk that somebody can mend while we wait: full, read-only, of another user."""


def canonical_json(value: object) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, UTF-8; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, durably: bool = True) -> None:
    """Write `data` to `path`; a crash leaves the old file or the new one, never half of either.

    Unless `durably`, a power cut may leave half of it: for data that has a digest and can be made
    again.
    """
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        beside = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            beside.chmod(mode)
            file.write(data)
            file.flush()
            if durably:
                os.fsync(file.fileno())
        beside.replace(path)
        if durably:
            _sync_folder(path.parent)
    except OSError as error:
        raise could_not_write(path, error) from error
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def is_file(path: Path) -> bool:
    """Return whether a file is there; no if its name is too long, where `Path.is_file` raises."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """Return whether a folder is there, as `is_file` does."""
    return os.path.isdir(path)  # noqa: PTH112


def check_writable(path: Path) -> None:
    """Check that `path` can be written, before hours of work go into its content.

    Raises:
        StateError: as `write_atomically` would.

    """
    if path.is_dir():
        raise StateError(f"{path} is a folder: give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise could_not_write(path, error) from error


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a new file to write, for data too large to hold in memory.

    The file becomes `path` if the block succeeds and is removed if it does not.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    except OSError as error:
        raise could_not_write(path, error) from error
    try:
        yield folder / path.name
        (folder / path.name).chmod(0o644)
        _sync_file(folder / path.name)
        (folder / path.name).replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise could_not_write(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder; it becomes `path` if the block succeeds, and is removed otherwise.

    An existing folder at `path` is replaced. POSIX cannot swap two folders in one step, so a crash
    between the two renames leaves the old folder beside `path`, with a name that starts with a dot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        beside.chmod(0o755)
    except OSError as error:
        raise could_not_write(path, error) from error
    try:
        yield beside
        for written in sorted(beside.rglob("*"), reverse=True):
            _sync_folder(written) if written.is_dir() else _sync_file(written)
        _sync_folder(beside)
        _put_in_place(beside, path)
    except OSError as error:
        raise could_not_write(path, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def could_not_write(path: Path, error: OSError) -> StateError:
    """Return the error for an `OSError` while writing `path`: what happened, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StateError(f"{path}: the disk is full; make room, nothing written was lost")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StateError(f"{path}: cannot be written ({error.strerror}); give this user the right to write there")
    return StateError(f"{path}: cannot be written: {error.strerror or error}")


def _put_in_place(beside: Path, path: Path) -> None:
    aside = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    try:
        beside.rename(path)
    except OSError:
        with suppress(OSError):
            aside.rename(path)
        raise
    _sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_file(path: Path) -> None:
    # Windows syncs only files that are open for writing.
    with path.open("r+b" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Make renames within a folder durable (not on Windows, which cannot open folders)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
