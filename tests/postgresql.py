"""A PostgreSQL server for tests: Debian's package, on loopback, in a folder that is removed."""

from __future__ import annotations

import ctypes
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from mos_bench.processes import PR_SET_CHILD_SUBREAPER
from mos_server.state.journal.postgresql import PostgreSQL

USER = "operator"
PR_GET_CHILD_SUBREAPER = 37
# The data may be lost with the machine: a test does not outlive it.
FAST = ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"]


def _programs() -> Path | None:
    """The newest folder with `initdb` in it: Debian keeps it out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    there = shutil.which("initdb")
    return found[-1].parent if found else Path(there).parent if there else None


@dataclass
class Cluster:
    """A running server, whose password is in PGPASSWORD as an operator would put it there."""

    folder: Path
    port: int

    @staticmethod
    def is_installed() -> bool:
        return _programs() is not None

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Cluster]:
        """Make a server, and remove it afterwards."""
        folder = Path(tempfile.mkdtemp(prefix="mos-postgresql-"))
        before = os.environ.get("PGPASSWORD")
        os.environ["PGPASSWORD"] = secrets.token_urlsafe(16)
        with socket.create_server(("127.0.0.1", 0)) as free:
            cluster = cls(folder, free.getsockname()[1])
        try:
            (folder / "password").write_text(os.environ["PGPASSWORD"])
            for path in (folder, folder / "password"):
                if os.geteuid() == 0:
                    shutil.chown(path, cluster._user)
            authentication = ["--auth", "scram-sha-256", "--pwfile", folder / "password", "--username", USER]
            locale = ["--encoding", "UTF8", "--locale", "C.UTF-8"]
            cluster._run("initdb", "-D", folder / "data", "--no-sync", *locale, *authentication)
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(folder)
            if before is None:
                del os.environ["PGPASSWORD"]
            else:
                os.environ["PGPASSWORD"] = before

    def start(self) -> None:
        """Start the server, which is nobody's child."""
        options = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", *FAST]
        # `Processes` makes this process the parent of orphans, and ends those that it finds.
        libc, before = ctypes.CDLL(None), ctypes.c_int()
        libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        try:
            self._ctl("start", "-w", "-l", self.folder / "log", "-o", " ".join(options))
        finally:
            libc.prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)

    def stop(self) -> None:
        """Stop it, and end whatever is connected."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self._ctl("stop", "-w", "-m", "fast")

    def address(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self, encoding: str = "UTF8") -> str:
        """Return the address of a new database."""
        name = f"mos_{secrets.token_hex(6)}"
        engine = create_engine(self.address("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'"))
        engine.dispose()
        return self.address(name)

    @property
    def _user(self) -> str:
        """PostgreSQL refuses to run as root."""
        known = {each.pw_name for each in pwd.getpwall()}
        return "postgres" if "postgres" in known else "nobody"

    def _ctl(self, *words: str | Path) -> None:
        self._run("pg_ctl", "-D", self.folder / "data", *words)

    def _run(self, program: str, *words: str | Path) -> None:
        programs = _programs()
        assert programs is not None
        as_user = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid} if os.geteuid() == 0 else {}
        with (self.folder / "output").open("ab") as output:
            command = [str(programs / program), *map(str, words)]
            subprocess.run(command, check=True, stdout=output, stderr=output, cwd="/", **as_user)


def change(place: Path | PostgreSQL, statement: str) -> None:
    """Run a statement as another program would, past the journal."""
    url = make_url(f"sqlite:///{place}" if isinstance(place, Path) else place.url)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
