"""What the process of a round owes its server: to be the only one, to end with it, to say why."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from mos_common.errors import StateError
from mos_common.files import could_not_write
from mos_server.state.folder import State

WHY = "MOS_WHY"
"""The environment variable with the number of a pipe, for the reason why the process pauses."""

# The process of a server that was killed ends within a second, unless it computes without a pause.
_EARLIER_ENDS_WITHIN_S = 30.0


def end_with_server() -> None:
    """End this process, and those that it started, as soon as its server has ended.

    The server holds the other end of standard input for as long as it lives, however it ends.
    """

    def watch() -> None:
        # Not through sys.stdin: Python cannot end while a thread is inside one of its buffers.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watches the server", daemon=True).start()


@contextmanager
def only_process(state: State) -> Iterator[None]:
    """Hold the lock of the process that works on a state folder's round.

    Raises:
        StateError: an earlier process still works on it, or the lock cannot be opened.

    """
    lock = FileLock(state.path / "round.lock", mode=0o600)
    try:
        lock.acquire(timeout=_EARLIER_ENDS_WITHIN_S)
    except Timeout as error:
        raise StateError(
            f"the round's earlier process, of a server that was killed, still runs (its lock is {lock.lock_file}): "
            "end that process"
        ) from error
    except OSError as error:
        raise could_not_write(state.path / "round.lock", error) from error
    try:
        yield
    finally:
        lock.release()


def pause_because(reason: str) -> None:
    """Tell the server why this process ends although the round has not: it is started again."""
    if WHY in os.environ:
        os.write(int(os.environ[WHY]), reason.encode())
