"""Run the process of a round: start it, restart it if it dies, stop it with the server."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field

from mos_common.errors import MosError, StateError
from mos_common.files import could_not_write
from mos_common.flower_app import FLOWER_ENVIRONMENT
from mos_common.outage import Outage
from mos_common.processes import end_process
from mos_server.network.superlink import SuperLink
from mos_server.round.attribution import is_attributed, take_back
from mos_server.round.process import WHY
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.pause import Pause, Unstored, check_room
from mos_server.state.records import FAILED, Round

log = logging.getLogger(__name__)

# Environment variables of the process. Flower's token goes through standard input instead, which
# nobody else can read.
STATE, ROUND, DEVICE, DTYPE = "MOS_STATE", "MOS_ROUND", "MOS_DEVICE", "MOS_DTYPE"
ADDRESS, PARENT = "MOS_SUPERLINK", "MOS_SERVER_PROCESS"

# A process that dies has run out of memory or met a bug; both repeat.
ATTEMPTS = 3
_TERM_S = 3.0
# A pause doubles from the first to the second: room on a disk is noticed soon, a bug fills no log.
_PAUSES_S = 1.0, 30.0
_WELL_AFTER_S = 20.0  # a process that has run this long has got past what paused the round
_REASON_BYTES = 8192


@dataclass
class RoundRunner:
    """Keeps the process of the unfinished round alive.

    `step` is called repeatedly, by one thread at a time. Whatever goes wrong in it pauses the
    round and is tried again; it is said once, in the log and as a note of the round. A round whose
    answers the ports cannot store is paused as well: its process goes on waiting for them.
    """

    state: State
    journal: Journal
    superlink: SuperLink
    pause: Pause
    unstored: Unstored
    device: str | None = None
    dtype: str | None = None
    _process: subprocess.Popen[bytes] | None = None
    _why: int = -1
    _began: float = 0.0
    _ended_by_itself: bool = False
    _round: str = ""
    _deaths: dict[str, int] = field(default_factory=dict)
    _last_note: int = 0
    _pause_s: float = 0.0
    _paused_until: float = 0.0
    _outage: Outage = field(default_factory=lambda: Outage(lambda line: log.error("%s", line)))

    def step(self) -> None:
        """Start a round that was asked for, log its new notes, and check on its process."""
        if time.monotonic() < self._paused_until:
            return
        try:
            self._step()
        except Exception as error:  # a server outlives every bad minute of its disk, and our mistakes
            self._pause(error)

    def stop(self) -> None:
        """End the process. The round resumes when the server is started again."""
        if self._process is None:
            return
        end_process(self._process, _TERM_S)
        self._reap()

    def _step(self) -> None:
        self._log_notes()
        unstored = self.unstored.why()
        if unstored:
            self._say_paused(unstored)
        if self._process is None:
            if (round_ := self.journal.rounds.unfinished()) is not None:
                self._begin(round_)
            elif not unstored:
                self._get_on()
        elif (code := self._process.poll()) is not None:
            self._ended(self.journal.rounds.get(self._round), code, self._reap())
        elif not unstored and (not self._pause_s or time.monotonic() - self._began > _WELL_AFTER_S):
            self._get_on()

    def _begin(self, round_: Round) -> None:
        if self._round != round_.id:
            self._round, self._last_note = round_.id, 0
        check_room(self.state)
        if self._ended_by_itself:  # the disk that ended it may have kept whose data it was reading
            take_back(self.state.path, round_.id)
            self._ended_by_itself = False
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
        self._why, says_why = os.pipe()
        try:
            with (self.state.log / f"{round_.id}.log").open("ab") as output:
                # -P: do not import from the current folder. A session of its own: Ctrl-C reaches
                # only the server.
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "mos_server.round.app"],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment | {WHY: str(says_why)},
                    pass_fds=[says_why],
                    start_new_session=True,
                )
        finally:
            os.close(says_why)
            if self._process is None:
                self._close_why()
        self._began = time.monotonic()
        # The pipe stays open: its end tells the process that the server has ended.
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has died already: the next step sees that
                self._process.stdin.write(task.token.encode() + b"\n")
                self._process.stdin.flush()
        self.pause.over()

    def _ended(self, round_: Round, code: int, why: str) -> None:
        self._log_notes()
        if not round_.unfinished:
            log.info("%s: %s", round_.id, round_.status)
            self._get_on()
            return
        if why:
            self._ended_by_itself = True
            raise StateError(why)
        check_room(self.state)  # a process that died on a full disk is started again when there is room
        where = self.state.log / f"{round_.id}.log"
        if not is_attributed(self.state.path, round_.id):  # what it died of is set aside at the next start
            self._deaths[round_.id] = self._deaths.get(round_.id, 0) + 1
        if self._deaths.get(round_.id, 0) >= ATTEMPTS:
            self.journal.rounds.advance(
                round_.id, FAILED, f"its process ended {ATTEMPTS} times, the last time with code {code}: see {where}"
            )
            log.error("%s failed: see %s", round_.id, where)
        else:
            self.journal.notes.add(
                round_.id, f"the round's process ended with code {code} (see {where}): starting it again"
            )

    def _pause(self, error: Exception) -> None:
        if isinstance(error, OSError):
            error = could_not_write(self.state.path, error)
        known = isinstance(error, MosError)
        reason = str(error) if known else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        shortest, longest = _PAUSES_S
        self._pause_s = min(max(shortest, 2 * self._pause_s), longest)
        self._paused_until = time.monotonic() + self._pause_s
        self._say_paused(reason, None if known else error)

    def _say_paused(self, reason: str, mistake: Exception | None = None) -> None:
        self.pause.because(reason)
        if self._outage.report(f"rounds are paused and go on by themselves: {reason}"):
            if mistake:
                log.error("what paused them", exc_info=mistake)
            if self._round:
                with suppress(MosError):  # the disk that cannot be written is the usual reason
                    self.journal.notes.add(self._round, f"paused: {reason}")

    def _get_on(self) -> None:
        self.pause.over()
        self._outage.over("rounds go on")
        self._pause_s = 0.0

    def _reap(self) -> str:
        """Forget the process, which has ended, and return why it paused the round, or ""."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        os.set_blocking(self._why, False)
        try:
            return os.read(self._why, _REASON_BYTES).decode(errors="replace")
        except BlockingIOError:  # a child of the process, such as one that records, still has its end
            return ""
        finally:
            self._close_why()

    def _close_why(self) -> None:
        os.close(self._why)
        self._why = -1

    def _log_notes(self) -> None:
        if self._round:
            for number, _, text in self.journal.notes.of(self._round, self._last_note):
                self._last_note = number
                log.info("%s: %s", self._round, text)
