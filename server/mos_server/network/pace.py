"""The least rate at which a stranger has to move bytes."""

from __future__ import annotations

# Far below any line that is of use: an honest upload at 16 kB/s, in two requests at a time, passes.
LEAST_BYTES_PER_S = 1024
# A wireless line may be silent for a while.
GRACE_S = 20.0


class Pace:
    """Whether a transfer moves in each stretch of `grace_s`, as many bytes as the rate asks for."""

    def __init__(self, rate: int = LEAST_BYTES_PER_S, grace_s: float = GRACE_S) -> None:
        self._bytes = rate * grace_s
        self._grace_s = grace_s
        self._began: float | None = None
        self._from = 0

    def too_slow(self, moved: int, *, idle: bool, now: float) -> bool:
        """Return whether too little has moved.

        `moved` counts all bytes so far; `idle` says that none are waiting to be moved.
        """
        if idle:
            self._began = None
        elif self._began is None or moved - self._from >= self._bytes:
            self._began, self._from = now, moved
        return self._began is not None and now - self._began > self._grace_s
