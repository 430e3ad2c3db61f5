"""The operator's state folder: a whole federation in one place, backed up by copying it.

config.json     the options of `mos-server init`, read when something needs them
pki/            keys and certificates
server.db       the journal, unless it is in a PostgreSQL server
audit.jsonl     the audit, see audit.py
concepts/, moments/, models/, sheets/     see artefacts.py; with a store, copies of what is there
flower/         Flower's own database and files
log/            the logs of the server and of each round
lock, pid       a lock held while a server runs, and the process that took it last
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field

from mos_common.commands import command_line
from mos_common.errors import RequestError, StateError
from mos_common.files import canonical_json, could_not_write, write_atomically
from mos_common.json_models import JsonModelError, StrictModel, from_json
from mos_common.own.names import Publishes
from mos_server.state.artefacts import FOLDERS, Artefacts
from mos_server.state.journal.postgresql import PostgreSQL
from mos_server.state.pki import Pki, create_pki
from mos_server.state.records import Fusion
from mos_server.state.store import Store

CONFIG = "config.json"
DATABASE = "server.db"
PID = "pid"
_LOCK_WAIT_S = 1.0  # `is_served` holds the lock for a moment
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?")
Port = Annotated[int, Field(ge=1, le=65535)]


class ServerConfig(StrictModel):
    """The options of `mos-server init`, and the server's own identity.

    host: the name or address under which participants reach the two ports.
    also_names: other names of this machine, former ones for example, for which its certificate
        is valid.
    journal: the address of the journal in PostgreSQL, without a password; empty: server.db.
    artefacts: the address of the store of uploads and models; empty: this folder.
    publishes: `own` if own changes of those who agree are published too; kits say so.
    fusion: how rounds are fused unless their own settings say otherwise; only values that
        differ from the defaults.
    """

    model_config = ConfigDict(frozen=True)
    base: str
    base_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    host: str = "127.0.0.1"
    also_names: tuple[str, ...] = ()
    fleet_port: Port = 9092
    mos_port: Port = 9093
    server_id: str = Field(default_factory=lambda: secrets.token_hex(16))
    fusion: Fusion = Field(default_factory=dict)
    publishes: Publishes = "fused"
    journal: str = ""
    artefacts: str = ""

    @property
    def hosts(self) -> tuple[str, ...]:
        """All names in the certificate, the one that kits carry first."""
        return tuple(dict.fromkeys([self.host, *self.also_names]))

    def described(self) -> list[str]:
        """Return a line for each choice of `init` that is not the usual one."""
        own = "own changes of those who agree are published beside the models" if self.publishes == "own" else ""
        places = {"journal": self.journal, "uploads and models": self.artefacts}
        return [own] * bool(own) + [f"{name}: {place}" for name, place in places.items() if place]

    @property
    def fleet_address(self) -> str:
        """The address for rounds, as in kits."""
        return self._address(self.fleet_port)

    @property
    def mos_address(self) -> str:
        """The address for enrolment and downloads, as in kits."""
        return self._address(self.mos_port)

    def moved(self, host: str, also: Sequence[str] = ()) -> ServerConfig:
        """Return the options for a server at `host`, which keeps all the names it had."""
        names = tuple(name for name in dict.fromkeys([*also, *self.hosts]) if name != host)
        return self.model_copy(update={"host": host, "also_names": names})

    def _address(self, port: int) -> str:
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


@dataclass(frozen=True)
class State:
    """An existing state folder; a damaged part is an error only for those who read that part."""

    path: Path

    @cached_property
    def config(self) -> ServerConfig:
        """The options of `mos-server init`, read once.

        Raises:
            StateError: config.json is missing or damaged, or cannot be read.

        """
        try:
            return from_json(ServerConfig, (self.path / CONFIG).read_bytes())
        except (OSError, JsonModelError) as error:
            reason = str(error).splitlines()[0]
            raise StateError(f"{self.path / CONFIG} cannot be used ({reason}): restore it from a backup") from error

    @property
    def pki(self) -> Pki:
        """Keys and certificates."""
        return Pki(self.path / "pki")

    @property
    def database(self) -> Path | PostgreSQL:
        """Where the journal is.

        Raises:
            StateError: config.json is lost, and the journal is not in this folder.

        """
        file = self.path / DATABASE
        if file.is_file():  # also when config.json is lost
            return file
        return PostgreSQL(self.config.journal, self.path) if self.config.journal else file

    @cached_property
    def artefacts(self) -> Artefacts:
        """Uploads, second moments and models.

        Raises:
            StateError: config.json is lost, and uploads are not in this folder.

        """
        try:
            url = self.config.artefacts
        except StateError:
            if not (self.path / "concepts").is_dir():
                raise
            return Artefacts(self.path)
        return Artefacts(self.path, Store(url) if url else None)

    @property
    def flower(self) -> Path:
        """Flower's database and home."""
        return self.path / "flower"

    @property
    def log(self) -> Path:
        """Logs of the server and of every round."""
        return self.path / "log"


def create_state(path: Path, config: ServerConfig) -> State:
    """Create a state folder with new keys and certificates.

    Raises:
        StateError: `path` exists and is not an empty folder, or cannot be written.
        RequestError: the host is not a name or an address, or the two ports are the same.

    """
    check_hosts(config)
    if config.fleet_port == config.mos_port:
        raise RequestError(f"port {config.fleet_port} is given twice: --fleet-port and --mos-port must differ")
    check_can_create(path)
    try:
        kept_here = [name for name in FOLDERS if name != "concepts" or not config.artefacts]
        for folder in ("pki", "flower", "log", *kept_here):
            (path / folder).mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise could_not_write(path, error) from error
    create_pki(path / "pki", *config.hosts)
    # Last: a folder with a config is complete.
    _write_config(path, config)
    return State(path.resolve())


def keep_fusion(state: State, fusion: Mapping[str, Any]) -> State:
    """Replace the federation's fusion settings, which apply to rounds asked for from now on.

    Raises:
        StateError: config.json cannot be read or written.

    """
    return _changed(state, {"fusion": dict(fusion)})


def keep_fingerprint(state: State, fingerprint: str) -> State:
    """Replace the fingerprint of the federation's base.

    Raises:
        StateError: config.json cannot be read or written.

    """
    return _changed(state, {"base_fingerprint": fingerprint})


def keep_hosts(state: State, moved: ServerConfig) -> State:
    """Replace the names under which participants reach the server.

    Raises:
        StateError: config.json cannot be read or written.

    """
    return _changed(state, {"host": moved.host, "also_names": moved.also_names})


def check_hosts(config: ServerConfig) -> None:
    """Check the names and addresses of a server.

    Raises:
        RequestError: one is neither a host name nor an address.

    """
    for flag, host in (("--host", config.host), *(("--also-name", name) for name in config.also_names)):
        if not _HOST.fullmatch(host):
            raise RequestError(f"{flag} {host!r}: give the name or address at which participants reach this machine")


def _changed(state: State, values: Mapping[str, Any]) -> State:
    _write_config(state.path, state.config.model_copy(update=values))
    return State(state.path)


def _write_config(path: Path, config: ServerConfig) -> None:
    values = {"also_names": config.also_names, "publishes": config.publishes == "own", "journal": config.journal}
    values |= {"artefacts": config.artefacts}
    unused = {name for name, used in values.items() if not used}  # 0.1.0 reads what it knows
    write_atomically(path / CONFIG, canonical_json(config.model_dump(exclude=unused)) + b"\n")


def check_can_create(path: Path) -> None:
    """Check that a state folder can be created at `path`.

    Raises:
        StateError: `path` exists and is not an empty folder.

    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StateError(f"{path} already exists and is not empty: choose another folder, or remove it")
    except OSError as error:
        raise could_not_write(path, error) from error


def open_state(path: Path, *, only_read: bool = False) -> State:
    """Open the state folder at `path`. Its parts are read when they are needed.

    Raises:
        StateError: `path` is not a state folder, or it cannot be written and is not only read.

    """
    if not only_read and path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
        raise StateError(f"{path} cannot be written: give this user the permission, or mount it for writing")
    # The journal alone is enough: it is made only in a complete folder, which has lost its config.
    if not any((path / name).exists() for name in (CONFIG, DATABASE)):
        if (path / "enrolled.json").is_file():
            raise StateError(
                f"{path} is a participant's state folder, of mos-client join: give the folder that mos-server init made"
            )
        init = command_line("mos-server", "init", path)
        raise StateError(f"{path} is not a server's state folder: make one with {init}")
    return State(path.resolve())


@contextmanager
def locked(state: State) -> Iterator[None]:
    """Hold the lock of a state folder, as its only server. The lock ends with the process.

    Raises:
        StateError: another server holds the lock, or the folder cannot be written.

    """
    lock = FileLock(state.path / "lock", mode=0o600)
    try:
        lock.acquire(timeout=_LOCK_WAIT_S)
    except Timeout as error:
        raise StateError(f"{state.path} is served already, by process {_holder(state)}: stop that one first") from error
    except OSError as error:
        raise could_not_write(state.path / "lock", error) from error
    try:
        write_atomically(state.path / PID, f"{os.getpid()}\n".encode(), mode=0o600)
        yield
    finally:
        lock.release()


def _holder(state: State) -> str:
    try:
        return (state.path / PID).read_text().strip()
    except OSError:
        return "?"


def serving_process(state: State) -> int | None:
    """Return the process that serves a state folder now, or None if nobody does.

    Raises:
        StateError: that cannot be told: the lock belongs to another user, or `pid` is lost.

    """
    served = is_served(state)
    if served is None:
        raise StateError(f"{state.path / 'lock'} belongs to another user: run this command as the one who serves")
    if served and not _holder(state).isdigit():
        raise StateError(f"{state.path / PID} is lost, so the process that serves is unknown: start the server again")
    return int(_holder(state)) if served else None


def is_served(state: State) -> bool | None:
    """Return whether a server is running on a state folder now; None: its lock cannot be opened."""
    try:
        with FileLock(state.path / "lock", mode=0o600, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return _is_held(state.path / "lock")


def _is_held(lock: Path) -> bool | None:
    """Return whether a lock that cannot be written is held; None: it cannot be opened either."""
    import fcntl  # not on Windows, where `mos-server fuse` runs but no server

    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None  # another user's, who may or may not run a server
