"""Run the process of a round: start it, restart it if it dies, stop it with the server."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field

from mos_common.flower_app import FLOWER_ENVIRONMENT
from mos_common.processes import end_process
from mos_server.network.superlink import SuperLink
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import FAILED, Round

log = logging.getLogger(__name__)

# Environment variables of the process. Flower's token goes through standard input instead, which
# nobody else can read.
STATE, ROUND, DEVICE, DTYPE = "MOS_STATE", "MOS_ROUND", "MOS_DEVICE", "MOS_DTYPE"
ADDRESS, PARENT = "MOS_SUPERLINK", "MOS_SERVER_PROCESS"

# A process that dies has run out of memory or met a bug; both repeat.
ATTEMPTS = 3
_TERM_S = 3.0


@dataclass
class RoundRunner:
    """Keeps the process of the unfinished round alive.

    `step` is called repeatedly, by one thread at a time.
    """

    state: State
    journal: Journal
    superlink: SuperLink
    device: str | None = None
    dtype: str | None = None
    _process: subprocess.Popen[bytes] | None = None
    _round: str = ""
    _attempts: dict[str, int] = field(default_factory=dict)
    _last_note: int = 0

    def step(self) -> None:
        """Start a round that was asked for, log its new notes, and check on its process."""
        self._log_notes()
        if self._process is None:
            if (round_ := self.journal.rounds.unfinished()) is not None:
                self._begin(round_)
        elif (code := self._process.poll()) is not None:
            self._process = None
            self._ended(self.journal.rounds.get(self._round), code)

    def stop(self) -> None:
        """End the process. The round resumes when the server is started again."""
        if self._process is None:
            return
        end_process(self._process, _TERM_S)
        self._process = None

    def _begin(self, round_: Round) -> None:
        if self._round != round_.id:
            self._round, self._last_note = round_.id, 0
        self._attempts[round_.id] = self._attempts.get(round_.id, 0) + 1
        task = self.superlink.start_run()
        self.journal.notes.add(round_.id, f"starting on {self.state.config.base}")
        settings = {
            STATE: str(self.state.path),
            ROUND: round_.id,
            ADDRESS: task.address,
            PARENT: str(os.getpid()),
            DEVICE: self.device,
            DTYPE: self.dtype,
        }
        environment = os.environ | FLOWER_ENVIRONMENT | {name: value for name, value in settings.items() if value}
        with (self.state.log / f"{round_.id}.log").open("ab") as output:
            # -P: do not import from the current folder. A session of its own: Ctrl-C reaches only
            # the server.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mos_server.round.app"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        if self._process.stdin is not None:
            with self._process.stdin as pipe:
                pipe.write(task.token.encode() + b"\n")

    def _ended(self, round_: Round, code: int) -> None:
        self._log_notes()
        if not round_.unfinished:
            log.info("%s: %s", round_.id, round_.status)
            return
        where = self.state.log / f"{round_.id}.log"
        if self._attempts[round_.id] >= ATTEMPTS:
            self.journal.rounds.advance(
                round_.id, FAILED, f"its process ended {ATTEMPTS} times, the last time with code {code}: see {where}"
            )
            log.error("%s failed: see %s", round_.id, where)
        else:
            self.journal.notes.add(
                round_.id, f"the round's process ended with code {code} (see {where}): starting it again"
            )

    def _log_notes(self) -> None:
        if self._round:
            for number, _, text in self.journal.notes.of(self._round, self._last_note):
                self._last_note = number
                log.info("%s: %s", self._round, text)
