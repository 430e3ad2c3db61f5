"""What `join` is doing, kept in a file of the state folder for anyone who looks.

The page reads it; so it shows a `join` of the command line as well, and one that goes on when the
page was closed. That the file cannot be written never ends the work that it speaks of.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mos_common.errors import MosError, StateError
from mos_common.files import write_atomically

ACTIVITY = "activity.json"
_WRITTEN_EVERY_S = 0.5
_LINES_KEPT = 40
_LOSSES_KEPT = 240
TUNING, JOINED = "tuning", "joined"
FAILED, INTERRUPTED, FINISHED = "failed", "interrupted", "finished"


@dataclass(frozen=True)
class Activity:
    """What a process is doing, or did last: `stage` is one of the words above.

    `done` of `total` steps are tuned at `step_s` seconds each; `losses` are (step, loss), thinned
    out; `said` are its last lines; `trouble` is why it failed. `process` says which process it is.
    """

    stage: str
    process: tuple[int, float]
    at: float
    done: int = 0
    total: int = 0
    loss: float | None = None
    step_s: float | None = None
    losses: Sequence[tuple[int, float]] = ()
    said: Sequence[str] = ()
    trouble: str = ""

    @property
    def runs(self) -> bool:
        """True while its process is there: another one with its number is another one."""
        number, created = self.process
        try:
            process = psutil.Process(number)
            return bool(process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    @property
    def left_s(self) -> float | None:
        """The seconds that tuning will take from here on, evaluations as far as they were timed."""
        return None if self.step_s is None else (self.total - self.done) * self.step_s


def read_activity(state: Path) -> Activity | None:
    """Return what is known of the last process on a state folder; None if nothing is."""
    try:
        values = json.loads((state / ACTIVITY).read_bytes())
        number, created = values.pop("process")
        losses = [(int(step), float(loss)) for step, loss in values.pop("losses")]
        return Activity(**values, process=(int(number), float(created)), losses=losses)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


@dataclass
class Reporter:
    """Keeps the file of one process up to date."""

    state: Path
    _values: dict[str, Any] = field(default_factory=dict)
    _said: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES_KEPT))
    _losses: list[tuple[int, float]] = field(default_factory=list)
    _written: float = 0.0
    _first: tuple[int, float] | None = None

    def stage(self, stage: str, trouble: str = "") -> None:
        """Say what is done from now on."""
        self._values |= {"stage": stage, "trouble": trouble}
        self._write()

    def saying(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Return `say`, of which the last lines are kept."""

        def both(line: str) -> None:
            say(line)
            self._said.append(line)
            self._write()

        return both

    def stepping(self, on_step: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return `on_step`, of which numbers and losses are kept."""

        def both(step: Any) -> None:
            on_step(step)
            now = time.monotonic()
            first, begun = self._first = self._first or (step.number, now)
            self._losses.append((step.number, round(step.loss, 5)))
            if len(self._losses) > _LOSSES_KEPT:
                del self._losses[::2]
            self._values |= {"done": step.number, "total": step.total, "loss": step.loss}
            if step.number > first:
                self._values["step_s"] = (now - begun) / (step.number - first)
            if now - self._written >= _WRITTEN_EVERY_S or step.number == step.total:
                self._write()

        return both

    def _write(self) -> None:
        self._written = time.monotonic()
        process = psutil.Process()
        values: dict[str, Any] = {"losses": self._losses, "said": list(self._said), **self._values}
        now = Activity(process=(process.pid, process.create_time()), at=time.time(), **values)
        with suppress(StateError):
            write_atomically(self.state / ACTIVITY, json.dumps(asdict(now)).encode(), mode=0o600, durably=False)


@contextmanager
def reported(state: Path) -> Iterator[Reporter]:
    """Report what is done within the block, and how it ended."""
    reporter = Reporter(state)
    reporter.stage(TUNING)
    try:
        yield reporter
    except MosError as error:
        reporter.stage(FAILED, str(error))
        raise
    except KeyboardInterrupt:
        reporter.stage(INTERRUPTED)
        raise
    except BaseException as error:
        reporter.stage(FAILED, f"a mistake of this program ({type(error).__name__})")
        raise
    reporter.stage(FINISHED)
