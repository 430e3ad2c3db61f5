"""Commands in processes of their own: those that load torch, which this server never does."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from mos_common.errors import RequestError
from mos_common.processes import end_process
from mos_server.state.folder import State

_MAIN = "from mos_server.cli.main import main; main()"
_COMMAND = (sys.executable, "-P", "-c", _MAIN)
# It ends with the server, however that ends: the server holds the other end of its standard input.
_ENDING = f"from mos_server.round.process import end_with_server; end_with_server(); {_MAIN}"
_QUICK_WITHIN_S = 120.0
_TERM_S = 3.0
_LINES, _KEPT = 12, 32
_NICE = 10


@dataclass
class Child:
    """A command that runs in the background, and the last lines that it wrote."""

    words: tuple[str, ...]
    process: subprocess.Popen[str]
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))

    @property
    def running(self) -> bool:
        """True while it runs."""
        return self.process.poll() is None

    @property
    def failed(self) -> bool:
        """True once it has ended with an error."""
        return self.process.poll() not in (None, 0)


class Children:
    """The page's processes: one in the background at a time, and quick ones beside it."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._started: dict[tuple[str, ...], Child] = {}
        self._closed = False

    def run(self, *words: str) -> str:
        """Run a quick `mos-server` command and return what it printed.

        Raises:
            RequestError: it failed; the message is the command's own.

        """
        try:
            ran = subprocess.run(
                [*_COMMAND, *words],
                capture_output=True,
                text=True,
                timeout=_QUICK_WITHIN_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise RequestError(f"the command did not end within {_QUICK_WITHIN_S:.0f} s: try it again") from error
        if ran.returncode:
            lines = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
            raise RequestError(lines[-1].removeprefix("error: "))
        return ran.stdout.strip()

    def start(self, *words: str) -> Child:
        """Start a long `mos-server` command; if the same runs already, return that.

        Raises:
            RequestError: another one is running.

        """
        with self._lock:
            for other in self._started.values():
                if other.running:
                    if other.words == words:
                        return other
                    raise RequestError(f"mos-server {other.words[0]} is running for this page: wait until it has ended")
            if self._closed:
                raise RequestError("the server is stopping")
            child = Child(words, self._popen(words))
            self._started.pop(words, None)
            self._started[words] = child
            while len(self._started) > _KEPT:
                del self._started[next(iter(self._started))]
        threading.Thread(target=self._read, args=(child,), name="reads a command", daemon=True).start()
        return child

    def of(self, *words: str) -> Child | None:
        """Return the last process that was started with these words, if any."""
        return self._started.get(words)

    def close(self) -> None:
        """End what runs."""
        with self._lock:
            self._closed = True
            for child in self._started.values():
                if child.running:
                    end_process(child.process, _TERM_S)

    def _popen(self, words: tuple[str, ...]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _ENDING, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=self._state.path,
        )
        with suppress(psutil.Error, OSError):  # a round's own process comes first
            psutil.Process(process.pid).nice(_NICE)
        return process

    @staticmethod
    def _read(child: Child) -> None:
        with child.process as process:  # closes its pipes at the end
            for line in process.stdout or ():
                child.lines.append(line.rstrip()[:1000])
