"""The only module that knows that the journal is SQLite: opening, transactions, errors.

The modules next to it use SQLAlchemy statements that any database takes, one transaction per call.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Executable, RowMapping, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mos_common.errors import StateError
from mos_server.state.journal.tables import REVISION

MIGRATIONS = Path(__file__).parent.parent / "migrations"
_BUSY_S = 30.0  # how long a call waits for another process's transaction
# Readers never wait for a writer, commits are on the disk, deleted rows are overwritten.
_PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON")
_WRITES = "mos_writes"
_FIRST = "0001"  # the tables of releases before 0.2, which recorded no revision
_MIGRATING = threading.Lock()  # alembic's `op` and `context` are global


class Database:
    """An open database at the revision that this code reads. Threads may share it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._mine = threading.local()
        # Called inside every transaction of `writing` before its commit, and after it.
        self.before_commit: Callable[[Connection], None] = lambda connection: None
        self.after_commit: Callable[[], None] = lambda: None
        self._engine = _engine(file)
        try:
            with self._errors():
                file.touch(mode=0o600)
                file.chmod(0o600)
                _migrate(self)
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Run the block as one transaction: afterwards either all of it is on the disk, or none.

        No other connection writes while the block runs, so what it has read is still true when it
        writes. A block inside another one of the same thread is part of the outer block.

        Raises:
            StateError: the database cannot be used.

        """
        if (outer := getattr(self._mine, "connection", None)) is not None:
            yield outer
            return
        with self.transaction() as connection:
            yield connection
            self.before_commit(connection)
        self.after_commit()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run the block as `writing` does, without `before_commit` and `after_commit`.

        Raises:
            StateError: the database cannot be used.

        """
        with (
            self._errors(),
            self._engine.connect().execution_options(**{_WRITES: True}) as connection,
            connection.begin(),
        ):
            self._mine.connection = connection
            try:
                yield connection
            finally:
                self._mine.connection = None

    def rows(self, query: Executable) -> Sequence[RowMapping]:
        """Return the rows of a query, inside the transaction that this thread is writing, if any.

        Raises:
            StateError: the database cannot be used.

        """
        with self._errors():
            if (outer := getattr(self._mine, "connection", None)) is not None:
                return _rows(outer, query)
            with self._engine.connect() as connection:
                return _rows(connection, query)

    def compact(self) -> None:
        """Rewrite the file without free pages and empty its log: nothing deleted is left in either.

        Raises:
            StateError: the database cannot be used, or another process is reading it.

        """
        with self._errors(), self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            try:  # not SQLAlchemy's: it would begin a transaction, in which a file cannot be rewritten
                driver.execute("VACUUM").close()
                busy, *_ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                raise StateError(
                    f"{self._file} cannot be rewritten ({error}): make room, and run this again"
                ) from error
        if busy:
            raise StateError(f"{self._file} is being read by another command: end that one, and run this one again")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # a statement violated a constraint: the caller knows which
        except (DBAPIError, PoolTimeoutError, sqlite3.Error, OSError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise StateError(
                f"{self._file} cannot be used ({reason}): is the disk full or read-only, or is it another user's? "
                "Nothing that was journalled before is lost"
            ) from error


def _engine(file: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(file)),
        connect_args={"timeout": _BUSY_S},
        max_overflow=-1,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where `begin` says, not where sqlite3 guesses
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its lock at once: one that reads first could be refused half-way.
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _rows(connection: Connection, query: Executable) -> Sequence[RowMapping]:
    return connection.execute(query).mappings().all()


def _migrate(database: Database) -> None:
    """Migrate the tables to REVISION. If several processes open a file at once, one does."""
    if _revision(database) == REVISION:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with _MIGRATING, database.writing() as connection:
        config.attributes["connection"] = connection
        tables = inspect(connection).get_table_names()
        try:
            if "rounds" in tables and "alembic_version" not in tables:
                command.stamp(config, _FIRST)
            command.upgrade(config, REVISION)
        except CommandError as error:
            raise StateError(
                f"the journal was written by a newer release ({error}): install that one, or restore the state "
                "folder from the backup made before"
            ) from error


def _revision(database: Database) -> str | None:
    try:
        rows = database.rows(text("SELECT version_num FROM alembic_version"))
    except StateError:
        return None  # no such table, or an unusable file: the migration reports which
    return str(rows[0]["version_num"]) if rows else None
