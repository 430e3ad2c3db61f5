"""How long ago something was, whatever happens to the wall clock meanwhile.

A wall clock steps: NTP sets it right, or somebody sets it wrong. The clock of the running system
does not, and every process of the machine reads the same one. So a moment is kept with both, and
with the name of the boot. After a restart of the machine only the wall clock is left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux; elsewhere the wall clock has to do


def moment() -> dict[str, Any]:
    """Return this moment by the clock of the running system, as JSON."""
    return {"boot": _boot(), "at": _uptime_s()}


def elapsed_s(wall: float, kept: Mapping[str, Any] | None) -> float:
    """Return the seconds since a moment that was kept as (wall time, `moment()`); 0 at least."""
    if kept is not None and kept["boot"] is not None and kept["boot"] == _boot():
        return max(0.0, _uptime_s() - float(kept["at"]))
    return max(0.0, time.time() - wall)


@cache
def _boot() -> str | None:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None


def _uptime_s() -> float:
    # Suspended time counts as well where the system measures it.
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
