"""Why the running server does not get on, for the commands that show it.

The journal cannot say it: a full disk is the usual reason. So the server keeps a file whose space
is there from the start and is only overwritten.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from mos_common.errors import StateError
from mos_common.files import could_not_write, write_atomically
from mos_server.state.folder import State, is_served

_BYTES = 4096
# More than the largest piece of an answer.
_PROBE_BYTES = 8 << 20
_CALM_S = 5.0


class Pause:
    """The file of one server, made when it starts.

    Raises:
        StateError: it cannot be made.

    """

    def __init__(self, state: State) -> None:
        self._file = _file(state)
        self._shown = ""
        write_atomically(self._file, b" " * _BYTES)

    def because(self, reason: str) -> None:
        """Show a reason until `over`. A file that cannot be written leaves it to the log."""
        self._show(reason)

    def over(self) -> None:
        """Show no reason."""
        self._show("")

    def _show(self, text: str) -> None:
        if text == self._shown:
            return
        data = text.replace("\n", " ").encode()[:_BYTES]
        with suppress(OSError), self._file.open("r+b", buffering=0) as file:
            file.write(data.ljust(_BYTES))
            self._shown = text


class Unstored:
    """What was sent to the server and cannot be stored, such as the answers to a round's questions.

    The ports `report` every failure. They refuse what was sent, its sender tries again, and only
    the server's operator can help. It is over once the folder has taken a file again and nobody has
    reported anything for 5 s. One object may be used by several threads.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._why, self._last = "", 0.0

    def report(self, why: str) -> None:
        """Take the reason for which something could not be stored. The first one stands."""
        with self._lock:
            self._why, self._last = self._why or why, time.monotonic()

    def why(self) -> str:
        """Return why nothing can be stored now; an empty text if nothing is known against it."""
        with self._lock:
            if not self._why or time.monotonic() - self._last < _CALM_S:
                return self._why
            with suppress(StateError):
                check_room(self._state)
                self._why = ""
            return self._why


def pause_of(state: State) -> str:
    """Return why the server that runs now does not get on; an empty text if it does, or is off."""
    if is_served(state) is False:
        return ""
    try:
        said = _file(state).read_bytes().decode(errors="replace").strip()
    except OSError:
        said = ""
    if not said and not os.access(state.path, os.W_OK | os.X_OK):
        return f"{state.path} cannot be written"
    return said


def check_room(state: State) -> None:
    """Check that the state folder takes files again, by writing one of 8 MiB.

    Raises:
        StateError: it does not.

    """
    try:
        with tempfile.TemporaryFile(dir=state.path, buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        raise could_not_write(state.path, error) from error


def _file(state: State) -> Path:
    return state.log / "paused"
