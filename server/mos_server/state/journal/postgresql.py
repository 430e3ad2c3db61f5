"""The journal in a database of a PostgreSQL server: what only that server needs.

The password is never in the address: libpq takes it from PGPASSWORD or ~/.pgpass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from mos_common.errors import RequestError, StateError
from mos_server.state.journal.tables import metadata

DRIVER = "postgresql+psycopg"
# One number for all processes of a federation: whoever writes holds this lock until it commits.
_WRITING = 0x6D6F73
_SECRETS = {"password", "sslpassword"}
# On the disk before a call returns; a lock, a statement and a silent process each have their end.
_OPTIONS = {
    "synchronous_commit": "on",
    "lock_timeout": "30s",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "120s",
}
_CONNECT_S = 10
_UNANSWERED_MS = 30_000


@dataclass(frozen=True)
class PostgreSQL:
    """A journal at `url`; `folder` has the audit's file."""

    url: str
    folder: Path

    def __str__(self) -> str:
        return self.url

    def engine(self) -> Engine:
        """Return the way to connect.

        Raises:
            StateError: the library for PostgreSQL is not installed.

        """
        try:
            return create_engine(
                self.url,
                # A default of the server, such as `repeatable read`, would read what was there
                # before the lock was given.
                isolation_level="READ COMMITTED",
                connect_args={
                    "connect_timeout": _CONNECT_S,
                    "tcp_user_timeout": _UNANSWERED_MS,
                    "application_name": "mos-server",
                    "client_encoding": "utf8",
                    "options": " ".join(f"-c {name}={value}" for name, value in _OPTIONS.items()),
                },
                pool_pre_ping=True,  # the server may have been restarted
                hide_parameters=True,
            )
        except ModuleNotFoundError as error:
            raise StateError(
                f"the journal is at {self.url}, and {error.name} is not installed: "
                "pip install 'federated-mix-of-show[postgresql]'"
            ) from error

    def begin(self, connection: Connection, *, writes: bool) -> None:
        """Begin a transaction; a writer waits for the one before it."""
        if writes:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITING})")

    def prepare(self) -> None:
        """Check that the audit's folder is there, where SQLite would make its file."""
        if not self.folder.is_dir():
            raise FileNotFoundError(2, "No such file or directory", str(self.folder))

    def compact(self, connection: Connection) -> None:
        """Rewrite the tables, so that nothing that was deleted is left in their files.

        What the database's own log and its backups have is out of our reach.

        Raises:
            StateError: there is no room, or another process is reading them.

        """
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            connection.exec_driver_sql("SET statement_timeout = 0")
            for table in metadata.tables:
                connection.exec_driver_sql(f"VACUUM FULL {table}")
        except DBAPIError as error:
            raise StateError(
                f"{self.url} cannot be rewritten ({one_line(error)}): end other commands, make room, and run this again"
            ) from error
        finally:
            connection.invalidate()  # it has no time limit any more

    def trouble(self, reason: object) -> str:
        """Describe an error of the database."""
        return (
            f"{self.url} cannot be used ({one_line(reason)}): does PostgreSQL run, may this user connect, and is its "
            "password in PGPASSWORD or ~/.pgpass? Nothing that was journalled before is lost"
        )


def checked_address(text: str) -> str:
    """Return the address of a journal in PostgreSQL, as `init` was given it.

    Raises:
        RequestError: it is no such address, or has a password in it.

    """
    wanted = f"expected {DRIVER}://USER@HOST/DATABASE"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise RequestError(f"--journal is no address of a database: {wanted}") from error
    if url.password is not None or _SECRETS & url.query.keys():
        raise RequestError(f"--journal has a password in it: put that into PGPASSWORD or ~/.pgpass, {wanted}")
    if url.drivername != DRIVER or not url.database:
        raise RequestError(f"--journal {text!r}: {wanted}")
    return text


def check_unused(url: str) -> None:
    """Check that a new federation can have its journal at `url`.

    Raises:
        StateError: it cannot be reached, has tables already, or does not keep texts as UTF-8.

    """
    place = PostgreSQL(url, Path())
    engine = place.engine()
    try:
        with engine.connect() as connection:
            encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
            tables = inspect(connection).get_table_names()
    except DBAPIError as error:
        raise StateError(place.trouble(error.orig)) from error
    finally:
        engine.dispose()
    if encoding != "UTF8":
        raise StateError(f"{url} keeps texts as {encoding}: make a database with ENCODING 'UTF8'")
    if tables:
        raise StateError(
            f"{url} has tables already ({', '.join(sorted(tables)[:5])}): give each federation a database of its own"
        )


def one_line(reason: object) -> str:
    """Return an error of the server in one line: libpq writes several."""
    return " ".join(str(reason.orig if isinstance(reason, DBAPIError) else reason).split())
