"""Say how long a tuning will take, once it has been timed on its own first steps."""

from __future__ import annotations

import logging
import time

from mos_client.tuning.loop import Step
from mos_client.tuning.settings import TuningSettings

log = logging.getLogger(__name__)
TIMED = 3  # steps, after the first one, which allocates memory and chooses kernels
WORTH_SAYING_S = 60.0


class Pace:
    """Times the first steps of a run and logs one line about the rest, if it takes a while."""

    def __init__(self, settings: TuningSettings) -> None:
        self._watched = settings.watch_every > 0
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
            log.info("about %.0f minutes to go: %.2f s for each step, timed on the first%s", left / 60, each, besides)
