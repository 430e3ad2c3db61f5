"""An open journal: transactions, errors, migrations.

`embedded.py` and `postgresql.py` know the two databases that may hold it. The modules next to them
use SQLAlchemy statements that both take, one transaction per call.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, Executable, RowMapping, event, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mos_common.errors import StateError
from mos_server.state.journal.embedded import Embedded
from mos_server.state.journal.postgresql import PostgreSQL
from mos_server.state.journal.tables import REVISION

MIGRATIONS = Path(__file__).parent.parent / "migrations"
_WRITES = "mos_writes"
_FIRST = "0001"  # the tables of releases before 0.2, which recorded no revision
_MIGRATING = threading.Lock()  # alembic's `op` and `context` are global


class Database:
    """An open database at the revision that this code reads. Threads may share it."""

    def __init__(self, place: Path | PostgreSQL) -> None:
        self.place = Embedded(place) if isinstance(place, Path) else place
        self._mine = threading.local()
        # Called inside every transaction of `writing` before its commit, and after it.
        self.before_commit: Callable[[Connection], None] = lambda connection: None
        self.after_commit: Callable[[], None] = lambda: None
        self._engine = _engine(self.place)
        try:
            with self._errors():
                self.place.prepare()
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
        """Rewrite the database so that nothing that was deleted is left in its files.

        Raises:
            StateError: the database cannot be used, or another process is reading it.

        """
        with self._errors(), self._engine.connect() as connection:
            self.place.compact(connection)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # a statement violated a constraint: the caller knows which
        except (DBAPIError, PoolTimeoutError, sqlite3.Error, OSError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise StateError(self.place.trouble(reason)) from error


def _engine(place: Embedded | PostgreSQL) -> Engine:
    engine = place.engine()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        place.begin(connection, writes=connection.get_execution_options().get(_WRITES, False))

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
