"""The operator's state folder: everything a federation is, in one place that can be backed up by copying it.

config.json    what `mos-server init` was told        concepts/    admitted uploads, by content digest
pki/           keys and certificates                  moments/     second moments kept from fusion to fusion
server.db      the journal (store.py)                 models/      published models and candidates
lock           held while a server runs               flower/      Flower's own database and files
                                                      log/         what the server and each round wrote
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mos_common.errors import RequestError, StateError
from mos_common.files import canonical_json, could_not_write, write_atomically
from mos_server.state.pki import Pki, create_pki

CONFIG = "config.json"
FOLDERS = ("pki", "concepts", "moments", "models", "flower", "log")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?")
Port = Annotated[int, Field(ge=1, le=65535)]


class ServerConfig(BaseModel):
    """What `mos-server init` was told, and the server's own identity.

    host: the name or address that participants reach the two ports under.
    fusion: how rounds are fused unless they are asked for otherwise, what differs from the defaults
        (`mos_server.fusion.settings.FusionSettings.to_json`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    base: str
    base_fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    host: str = "127.0.0.1"
    fleet_port: Port = 9092
    mos_port: Port = 9093
    server_id: str = Field(default_factory=lambda: secrets.token_hex(16))
    fusion: Mapping[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """An existing state folder."""

    path: Path
    config: ServerConfig

    @property
    def pki(self) -> Pki:
        """Keys and certificates."""
        return Pki(self.path / "pki")

    @property
    def database(self) -> Path:
        """The journal."""
        return self.path / "server.db"

    @property
    def concepts(self) -> Path:
        """Admitted uploads."""
        return self.path / "concepts"

    @property
    def moments(self) -> Path:
        """Second moments kept from fusion to fusion."""
        return self.path / "moments"

    @property
    def models(self) -> Path:
        """Published models and candidates."""
        return self.path / "models"

    @property
    def flower(self) -> Path:
        """Flower's database and home."""
        return self.path / "flower"

    @property
    def log(self) -> Path:
        """Logs of the server and of every round."""
        return self.path / "log"

    def model(self, round_id: str) -> Path:
        """Where the published model of a round is."""
        return self.models / round_id

    def candidate(self, round_id: str) -> Path:
        """Where the candidate of a round is."""
        return self.models / f"{round_id}-candidate"


def create_state(path: Path, config: ServerConfig) -> State:
    """Make a state folder: keys, certificates, an empty journal.

    Raises:
        StateError: there is something at `path` already, or it cannot be written.
        RequestError: the host is not a name or an address, or two ports are the same.

    """
    if not _HOST.fullmatch(config.host):
        raise RequestError(
            f"--host {config.host!r}: give the name or address that participants reach this machine under"
        )
    if config.fleet_port == config.mos_port:
        raise RequestError(f"port {config.fleet_port} is given twice: --fleet-port and --mos-port must differ")
    check_can_create(path)
    try:
        for folder in FOLDERS:
            (path / folder).mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise could_not_write(path, error) from error
    create_pki(path / "pki", config.host)
    # Last: a folder with a config is a whole one.
    _write_config(path, config)
    return State(path.resolve(), config)


def keep_fusion(state: State, fusion: Mapping[str, Any]) -> State:
    """Replace the federation's settings of fusion; rounds that are asked for from now on have them.

    Raises:
        StateError: config.json cannot be written.

    """
    config = state.config.model_copy(update={"fusion": dict(fusion)})
    _write_config(state.path, config)
    return State(state.path, config)


def _write_config(path: Path, config: ServerConfig) -> None:
    write_atomically(path / CONFIG, canonical_json(config.model_dump()) + b"\n")


def check_can_create(path: Path) -> None:
    """Check that a state folder can be made at `path`.

    Raises:
        StateError: there is something already.

    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StateError(f"{path} is there already and not empty: choose another folder, or remove it")
    except OSError as error:
        raise could_not_write(path, error) from error


def open_state(path: Path) -> State:
    """The state folder at `path`.

    Raises:
        StateError: it is none, it is damaged, or it cannot be read and written.

    """
    try:
        config = ServerConfig.model_validate_json((path / CONFIG).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StateError(f"{path} is not a server's state folder: make one with mos-server init {path}") from error
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise StateError(f"{path / CONFIG} cannot be used ({reason}): restore it from a backup") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise StateError(f"{path} cannot be written: give this user the right to, or mount it for writing")
    return State(path.resolve(), config)


@contextmanager
def locked(state: State) -> Iterator[None]:
    """Be the one server of a state folder. The lock is the kernel's: it is gone with the process, however it ends.

    Raises:
        StateError: another server runs on it.

    """
    descriptor = _lock(state)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(state: State) -> int:
    path = state.path / "lock"
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError as error:
        holder = os.read(descriptor, 20).decode().strip() or "?"
        os.close(descriptor)
        raise StateError(f"{state.path} is served already, by process {holder}: stop that one first") from error
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        raise could_not_write(path, error) from error
    return descriptor


def is_served(state: State) -> bool:
    """Whether a server runs on a state folder at this moment."""
    try:
        with (state.path / "lock").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise could_not_write(state.path / "lock", error) from error
    return False
