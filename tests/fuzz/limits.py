"""What a reader may cost, whatever it reads: its own errors only, two seconds, 200 MB."""

from __future__ import annotations

import resource
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fuzz.reader import Reader

SECONDS = 2.0
BYTES = 200 << 20


class CostsTooMuchError(AssertionError):
    """An input took more time or memory than a reader may."""


@dataclass(frozen=True)
class Cost:
    """What one input took: the processor's time, and memory beyond what was in use before."""

    taken: bool
    seconds: float
    bytes: int


def read_within_limits(reader: Reader, file: Path, data: bytes, *, seconds: float = SECONDS) -> Cost:
    """Read `data` as a file; return whether it was taken, and its cost.

    Time is the processor's, so that a busy machine does not matter.

    Raises:
        CostsTooMuchError: it took too long, or too much memory.
        Exception: the reader failed by an error that is not one of ours.

    """
    file.write_bytes(data)
    before = _peak_from_now()
    began = time.process_time()
    try:
        reader.read(file)
        taken = True
    except reader.refuses:
        taken = False
    cost = Cost(taken, time.process_time() - began, max(0, _peak() - before))
    if cost.seconds > seconds or cost.bytes > BYTES:
        raise CostsTooMuchError(f"{len(data)} bytes took {cost.seconds:.2f} s and {cost.bytes >> 20} MB more")
    return cost


def _peak_from_now() -> int:
    """Forget the peak of memory so far, where the system can, and return what is in use now."""
    with suppress(OSError):  # Linux alone; elsewhere an input is seen that takes more than all before
        Path("/proc/self/clear_refs").write_bytes(b"5")
    return _peak()


def _peak() -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_bytes().splitlines()
        return int(next(line for line in lines if line.startswith(b"VmHWM:")).split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
