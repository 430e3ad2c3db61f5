"""Sizes, times, durations and shares, as people read them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

_UNITS = ("kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Return a number of bytes, such as "3.4 MB"."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in _UNITS:
        count /= 1000
        if count < 999.5 or unit == _UNITS[-1]:
            break
    return f"{count:.0f} {unit}" if count >= 99.5 else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Return a time span by its two largest units, such as "2 h 5 min"."""
    left = max(0, round(seconds))
    if left < 60:
        return f"{left} s"
    if left < 3600:
        return f"{left // 60} min" + (f" {left % 60} s" if left % 60 and left < 600 else "")
    if left < 86400:
        return f"{left // 3600} h" + (f" {left % 3600 // 60} min" if left % 3600 >= 60 else "")
    return f"{left // 86400} d" + (f" {left % 86400 // 3600} h" if left % 86400 >= 3600 else "")


def ago(moment: float, now: float | None = None) -> str:
    """Return how long ago a moment was, both in seconds since 1970."""
    passed = (time.time() if now is None else now) - moment
    return "now" if -1 < passed < 1 else f"{duration(passed)} ago" if passed > 0 else f"in {duration(-passed)}"


def moment(at: float) -> str:
    """Return a moment in seconds since 1970 as a date and time in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine_moment(at: float) -> str:
    """Return the same for `<time datetime=...>`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def share(part: float) -> str:
    """Return a fraction of one in percent."""
    return f"{part * 100:.0f} %"


def score(value: float | None) -> str:
    """Return a score, which has three digits, or a dash if there is none."""
    return "–" if value is None else f"{value:.3f}"
