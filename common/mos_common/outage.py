"""Say once that something is away, and once that it is back: for loops that wait and try again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

RETRY_AFTER = "mos-retry-after-s"
"""The gRPC metadata with which a server says after how many seconds to come again."""


class Outage:
    """One thing that may be away for a while, such as a port or a disk.

    Its loop calls `report` at every failure and `over` at every success. `say` gets a line when the
    trouble begins, another if its cause changes, and one when it is over. Trouble that ends within
    `patience_s` is not mentioned.
    """

    def __init__(self, say: Callable[[str], None], *, patience_s: float = 0.0) -> None:
        self._say, self._patience_s = say, patience_s
        self._lock = threading.Lock()
        self._since: float | None = None
        self._said = ""

    def report(self, trouble: str) -> bool:
        """Say that something is away, why, and what happens next; return whether that was news."""
        with self._lock:
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            if trouble == self._said or now - self._since < self._patience_s:
                return False
            self._said = trouble
            began = time.strftime("%H:%M:%S", time.localtime(time.time() - now + self._since))
            self._say(f"{trouble} (since {began})")
            return True

    def over(self, text: str) -> None:
        """Say `text`, such as "the server is reachable again", if an outage was mentioned."""
        with self._lock:
            if self._said and self._since is not None:
                self._say(f"{text} after {in_words(time.monotonic() - self._since)}")
            self._since, self._said = None, ""


def in_words(seconds: float) -> str:
    """Return a duration as a person says it: 12 s, 3 min, 2 h 5 min, 4 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{round(hours / 24)} days"
