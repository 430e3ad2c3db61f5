"""Memory of uploads goes back to the system as soon as they are stored.

Two things keep it. glibc raises the size from which a block is a mapping of its own to that of the
largest block that was freed: after the first upload the pieces of later ones lie in heaps, one for
each thread, which keep what was freed in them. And Flower's web framework leaves each request in a
cycle of objects, body included, until Python collects the oldest ones.
"""

from __future__ import annotations

import ctypes
import gc

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of malloc.h
# Pieces of uploads are larger, what the server keeps is smaller.
_LARGE_BYTES = 256 << 10
_HEAPS = 2


def return_large_blocks() -> None:
    """Make each large block of this process a mapping of its own, for good.

    It does nothing where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_M_ARENA_MAX, _HEAPS)


def collect_only_new() -> None:
    """Leave all that is there now out of later collections, which then take milliseconds."""
    gc.collect()
    gc.freeze()


def collect_bodies() -> None:
    """Free the bodies of requests that were answered."""
    gc.collect()
