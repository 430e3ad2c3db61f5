"""Why the running server does not get on, for the commands that show it.

The journal cannot say it: a full disk is the usual reason. So the server keeps a file whose space
is there from the start and is only overwritten.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from mos_common.files import could_not_write, write_atomically
from mos_server.state.folder import State, is_served

_BYTES = 4096
_PROBE_BYTES = 1 << 20


class Pause:
    """The file of one server, made when it starts.

    Raises:
        StateError: it cannot be made.

    """

    def __init__(self, state: State) -> None:
        self._file = _file(state)
        write_atomically(self._file, b" " * _BYTES)

    def because(self, reason: str) -> None:
        """Show a reason until `over`. A file that cannot be written leaves it to the log."""
        self._write(reason)

    def over(self) -> None:
        """Show no reason."""
        self._write("")

    def _write(self, text: str) -> None:
        data = text.replace("\n", " ").encode()[:_BYTES]
        with suppress(OSError), self._file.open("r+b", buffering=0) as file:
            file.write(data.ljust(_BYTES))


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
    """Check that the state folder takes files again, by writing one of a megabyte.

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
