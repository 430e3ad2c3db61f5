"""Read a journal where nothing can be written: on a full disk, or one mounted read-only."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mos_common.errors import StateError
from mos_server.state.folder import State
from mos_server.state.journal import Journal


@contextmanager
def reading_journal(state: State) -> Iterator[Journal]:
    """Open the journal of a state folder to read it; if it cannot be opened there, a copy of it.

    SQLite writes beside a database that it only reads.

    Raises:
        StateError: it cannot be read, or is damaged.

    """
    place = state.database
    try:
        journal = Journal(place)
    except StateError as error:
        if not isinstance(place, Path):
            raise  # there is no file to copy
        with (
            tempfile.TemporaryDirectory(prefix="mos-journal-") as folder,
            closing(_copy(place, Path(folder), error)) as copy,
        ):
            yield copy
    else:
        with closing(journal):
            yield journal


def _copy(file: Path, folder: Path, error: StateError) -> Journal:
    try:
        shutil.copy(file, folder)
        with suppress(FileNotFoundError):  # what was written last, if a server runs or was killed
            shutil.copy(file.with_name(f"{file.name}-wal"), folder)
        return Journal(folder / file.name)
    except (OSError, StateError):
        raise error from None  # about the journal itself
