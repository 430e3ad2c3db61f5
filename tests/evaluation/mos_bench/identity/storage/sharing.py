"""Work shared by several processes: a process locks the piece it works on.

Every process follows the same plan. At each stage it takes pieces that nobody has taken, then waits
until the stage is done, so a stage may use everything that earlier stages made. A lock ends with
its process: a killed process leaves its piece undone and unlocked.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from mos_common.errors import StateError
from mos_common.shell import OnCount, counting, say

WAIT_S = 0.5
Piece = TypeVar("Piece")


class Sharing:
    """Locks in `folder`. A helper prints nothing and stops when its parent process is gone."""

    def __init__(self, folder: Path, *, helper: bool = False) -> None:
        self.folder, self.helper, self._parent = folder, helper, os.getppid()

    def all_of(
        self,
        what: str,
        pieces: Sequence[Piece],
        *,
        key: Callable[[Piece], str],
        done: Callable[[Piece], bool],
        do: Callable[[Piece], None],
    ) -> None:
        """Return when every piece is done, by this process or another."""
        left = [piece for piece in pieces if not done(piece)]
        if not left:
            return
        if not self.helper:
            say(f"{what}: {len(pieces) - len(left)} of {len(pieces)} already done")
        with counting(what) if not self.helper else _silent() as on_count:
            while left:
                for i, piece in enumerate(left, 1):
                    with self._locked(key(piece)) as acquired:
                        if acquired and not done(piece):
                            do(piece)
                    on_count(len(pieces) - len(left) + i, len(pieces), "")
                left = [piece for piece in left if not done(piece)]
                if left:
                    time.sleep(WAIT_S)

    def lock_file(self, key: str) -> Path:
        """Return the file that is locked while a piece is worked on.

        256 files serve any number of pieces: two that share one wait for each other.
        """
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:2]

    @contextmanager
    def _locked(self, key: str) -> Iterator[bool]:
        if self.helper and os.getppid() != self._parent:
            raise StateError("the parent process of this helper is gone")
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock_file(key))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


@contextmanager
def _silent() -> Iterator[OnCount]:
    yield lambda done, total, note: None
