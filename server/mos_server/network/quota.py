"""How many bytes each key may move within an hour."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

HOUR_S = 3600.0


class Quota:
    """The number of bytes that each key has moved within the hour. Threads may share one."""

    def __init__(self, hourly_bytes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._hourly_bytes = hourly_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._bytes: dict[str, int] = {}

    def count(self, key: str, size: int) -> None:
        """Add `size` bytes to the count of a key."""
        with self._lock:
            self._bytes[key] = self._bytes.get(key, 0) + size

    def spent(self, key: str, *, at_least: float = 0.0) -> bool:
        """Return whether a key has used up this hour's bytes, of which it has `at_least` these."""
        with self._lock:
            if self._clock() - self._began > HOUR_S:
                self._began, self._bytes = self._clock(), {}
            return self._bytes.get(key, 0) > max(self._hourly_bytes, at_least)

    @property
    def left_s(self) -> float:
        """The number of seconds until the next hour begins."""
        return max(0.0, self._began + HOUR_S - self._clock())
