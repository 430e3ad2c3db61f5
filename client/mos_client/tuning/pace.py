"""Say how long a tuning will take, once it has been timed on its own first steps."""

from __future__ import annotations

import logging
import sys
import time

from mos_client.tuning.loop import Step
from mos_client.tuning.memory_plan import GIB, Plan
from mos_client.tuning.settings import TuningSettings

log = logging.getLogger(__name__)
TIMED = 3  # steps, after the first one, which allocates memory and chooses kernels
WORTH_SAYING_S = 60.0


class Pace:
    """Times the first steps of a run and logs one line about the rest, if it takes a while."""

    def __init__(self, settings: TuningSettings, plan: Plan) -> None:
        self._watched, self._counted = settings.watch_every > 0, plan.gib is not None
        self._first: tuple[int, float] | None = None
        self._said = False

    def tell(self, step: Step) -> None:
        """Take the time of a finished step."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step.number, now)
            return
        number, started = self._first
        if self._said or step.number - number < TIMED:
            return
        self._said = True
        each = (now - started) / (step.number - number)
        left = each * (step.total - step.number)
        if left > WORTH_SAYING_S:
            besides = ", drawings of evaluations not counted" if self._watched else ""
            # Without a plan nobody has counted the memory, and this process knows what it took.
            took = None if self._counted else _peak_gib()
            memory = "" if took is None else f"; memory so far: at most {took:.1f} GB"
            log.info("about %.0f minutes to go: %.2f s for each step, timed here%s%s", left / 60, each, besides, memory)


def _peak_gib() -> float | None:
    """Return the most memory that this process has held, or None where that is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / GIB if sys.platform == "darwin" else most * 1024 / GIB
