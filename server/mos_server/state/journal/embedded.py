"""The journal in SQLite, a file of the state folder: what only that file needs."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

from mos_common.errors import StateError

_BUSY_S = 30.0  # how long a call waits for another process's transaction
# Readers never wait for a writer, commits are on the disk, deleted rows are overwritten.
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON")


@dataclass(frozen=True)
class Embedded:
    """A journal in `file`."""

    file: Path

    def __str__(self) -> str:
        return str(self.file)

    @property
    def folder(self) -> Path:
        """The folder of the audit's file."""
        return self.file.parent

    def engine(self) -> Engine:
        """Return the way to connect."""
        engine = create_engine(
            URL.create("sqlite", database=str(self.file)),
            connect_args={"timeout": _BUSY_S},
            max_overflow=-1,
            hide_parameters=True,
        )

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # transactions begin where `begin` says, not where sqlite3 guesses
            for pragma in _PRAGMAS:
                connection.execute(f"PRAGMA {pragma}").close()

        return engine

    def begin(self, connection: Connection, *, writes: bool) -> None:
        """Begin a transaction; a writer takes its lock at once, so none is refused half-way."""
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def prepare(self) -> None:
        """Make the file, readable by its owner alone."""
        self.file.touch(mode=0o600)
        self.file.chmod(0o600)

    def compact(self, connection: Connection) -> None:
        """Rewrite the file without free pages and empty its log.

        Raises:
            StateError: there is no room, or another process is reading it.

        """
        driver = connection.connection.driver_connection
        assert driver is not None
        try:  # not SQLAlchemy's: it would begin a transaction, in which a file cannot be rewritten
            driver.execute("VACUUM").close()
            busy, *_ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error as error:
            raise StateError(f"{self.file} cannot be rewritten ({error}): make room, and run this again") from error
        if busy:
            raise StateError(f"{self.file} is being read by another command: end that one, and run this one again")

    def trouble(self, reason: object) -> str:
        """Describe an error of the database."""
        return (
            f"{self.file} cannot be used ({reason}): is the disk full or read-only, or is it another user's? "
            "Nothing that was journalled before is lost"
        )
