"""The local SuperNode: Flower's own `flower-supernode`, in a mode in which it runs no code.

It dials out to the operator, holds messages for the executor, and opens one port on loopback. It
exits in several harmless cases (its server restarted; it was restarted within a minute under the
same key), so it is started again whenever it has exited.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from mos_common.errors import StateError
from mos_common.files import write_atomically
from mos_common.flower_app import FLOWER_ENVIRONMENT
from mos_common.outage import Outage
from mos_common.processes import end_process

log = logging.getLogger(__name__)
LONGEST_PAUSE_S = (
    75.0  # Flower takes a node for online up to a minute after its last heartbeat, and refuses a second one
)
STABLE_S = 120.0
STEADY_S = 20.0  # a SuperNode that is refused ends sooner
PROBE_EVERY_S = 30.0
_PROBE_S = 3.0
_TERM_S = 4.0
PROGRAM = (sys.executable, "-m", "mos_client.federation.run_supernode")


def free_port() -> int:
    """Return a free port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _warn(line: str) -> None:
    log.warning("%s", line)


@dataclass
class SuperNode:
    """Keeps a SuperNode running. `fleet` is the operator's address, `folder` has its own files."""

    fleet: str
    certificate: Path
    node_key: Path
    folder: Path
    node_config: str
    port: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _started: float = 0.0
    _pause_s: float = 1.0
    _not_before: float = 0.0
    _probed: float = -math.inf
    _ended: Outage = field(default_factory=lambda: Outage(_warn))
    _unreachable: Outage = field(default_factory=lambda: Outage(_warn))

    @property
    def address(self) -> str:
        """Where the executor asks for tasks."""
        return f"127.0.0.1:{self.port}"

    @property
    def secret_file(self) -> Path:
        """The secret that only this participant's executor knows."""
        return self.folder / "secret"

    def look_after(self) -> bool:
        """Start the SuperNode if it is not running and its pause is over; return whether it runs.

        After `stop` it is never started again.

        Raises:
            StateError: it cannot be started now; it is tried again after a pause.

        """
        self._probe()
        with self._lock:
            if self._process is not None and (code := self._process.poll()) is not None:
                self._process = None
                self._wait_longer()
                self._ended.report(
                    f"the connection to {self.fleet} ended (code {code}, see {self.folder / 'log'}): "
                    f"trying again, at least every {LONGEST_PAUSE_S:.0f} s"
                )
            elif self._process is not None and time.monotonic() - self._started > STEADY_S:
                self._ended.over(f"the connection to {self.fleet} holds again")
            if self._process is None and not self._stopped and time.monotonic() >= self._not_before:
                self._start()
            return self._process is not None

    def connect_to(self, fleet: str, authority: str) -> None:
        """Use this address and these certificates from now on; start the SuperNode anew if need be.

        Call it between two tasks, since a task under way would be lost.

        Raises:
            StateError: the certificates cannot be written.

        """
        if self.fleet == fleet and self._trusts(authority):
            return
        write_atomically(self.certificate, authority.encode())
        with self._lock:
            self.fleet = fleet
            if self._process is not None:
                end_process(self._process, _TERM_S)
                self._process = None
            self._not_before = 0.0

    def _trusts(self, authority: str) -> bool:
        try:
            return self.certificate.read_bytes() == authority.encode()
        except OSError:
            return False

    def stop(self) -> None:
        """End the SuperNode for good: `look_after` in another thread does not start another."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                end_process(self._process, _TERM_S)
                self._process = None

    def _probe(self) -> None:
        """Say when the operator's port cannot be reached: the SuperNode is silent about it."""
        if time.monotonic() - self._probed < PROBE_EVERY_S or self._stopped:
            return
        self._probed = time.monotonic()
        host, _, port = self.fleet.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
        except (OSError, ValueError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            self._unreachable.report(
                f"the port for rounds {self.fleet} cannot be reached ({reason}): no request of the server can arrive; "
                f"trying again every {PROBE_EVERY_S:.0f} s"
            )
        else:
            self._unreachable.over(f"the port for rounds {self.fleet} is reachable again")

    def _wait_longer(self) -> None:
        lasted = time.monotonic() - self._started
        self._pause_s = 1.0 if lasted > STABLE_S else min(self._pause_s * 2, LONGEST_PAUSE_S)
        self._not_before = time.monotonic() + self._pause_s

    def _start(self) -> None:
        self._started = time.monotonic()
        self.port = free_port()  # another process may use the last one by now
        try:
            self._spawn()
        except (OSError, StateError) as error:
            self._wait_longer()
            raise StateError(
                f"the connection cannot be opened ({error}): trying again in {self._pause_s:.0f} s"
            ) from error

    def _spawn(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.secret_file, secrets.token_hex(32).encode(), mode=0o600)
        command = [*PROGRAM, "--superlink", self.fleet]
        command += ["--root-certificates", str(self.certificate), "--auth-supernode-private-key", str(self.node_key)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--isolation", "process"]
        command += ["--superexec-auth-secret-file", str(self.secret_file), "--node-config", self.node_config]
        environment = os.environ | FLOWER_ENVIRONMENT | {"FLWR_HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends this process, which then stops the SuperNode
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
            )
