"""Commands as child processes that are all gone at the end, whatever happens in between."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

import psutil

from mos_common.errors import MosError
from mos_common.shell import say

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 12.0


class Processes:
    """Starts commands of this installation, prints every line they write, and ends them all.

    On Linux this process becomes the reaper of orphans: a grandchild whose parent died becomes its
    child and is ended with the others.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = {**os.environ, **env}
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.showing: list[threading.Thread] = []

    def __enter__(self) -> Processes:
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._before = signal.signal(signal.SIGTERM, _as_interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave children behind
        try:
            self._end_all()
        finally:
            signal.signal(signal.SIGINT, previous)
            signal.signal(signal.SIGTERM, self._before)

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Start `command`, whose first word is a command of this installation.

        Its lines are printed as "name | line".
        """
        words = [str(Path(sys.executable).parent / str(command[0])), *map(str, command[1:])]
        child = subprocess.Popen(
            words,
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a Ctrl-C reaches the demo alone, which then ends its children in order
        )
        self.running[name] = child
        self.showing.append(threading.Thread(target=_show, args=(name, child), daemon=True))
        self.showing[-1].start()

    def wait(self, name: str, *, timeout_s: float | None = None, beside: Sequence[str] = ()) -> None:
        """Wait until `name` has succeeded; fail at once when one of `beside` fails before that.

        Raises:
            MosError: it failed, took too long, or one beside it failed.

        """
        waited = 0.0
        while (code := self.running[name].poll()) is None:
            for other in beside:
                if other_code := self.running[other].poll():
                    raise MosError(
                        f"{other} ended with exit code {other_code} while {name} was running: its lines above say why"
                    )
            if timeout_s is not None and waited > timeout_s:
                raise MosError(f"{name} did not end within {timeout_s:.0f} s")
            threading.Event().wait(0.2)
            waited += 0.2
        if code:
            raise MosError(f"{name} ended with exit code {code}: its lines above say why")

    def do(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        """Run a command to its end."""
        self.start(name, command, env)
        self.wait(name)

    def stop(self, name: str) -> None:
        """Ask one process to end, as a service manager would, and wait for it."""
        self.running[name].terminate()
        self.running[name].wait(GRACE_S * 2)

    def _end_all(self) -> None:
        for child in self.running.values():
            if child.poll() is None:
                child.terminate()
        _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=GRACE_S)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in alive:
                with suppress(psutil.NoSuchProcess):  # it may end by itself at any time
                    end(process)
            _, alive = psutil.wait_procs(alive, timeout=3)
        for child in self.running.values():
            child.wait()
        for thread in self.showing:
            thread.join(timeout=3)


def _show(name: str, child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            if text := line.rstrip():
                say(f"{name:>9} | {text}")


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
