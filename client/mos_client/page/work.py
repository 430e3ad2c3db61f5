"""Commands of a state folder that run on when page and browser are closed.

Each is an ordinary command of `mos-client` in a session of its own. Its output is kept in a file,
and another file says which process it is, so that a page that was opened again finds it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import psutil

from mos_client.federation.activity import read_activity
from mos_client.federation.session import Session
from mos_common.commands import command_line
from mos_common.errors import StateError
from mos_common.files import could_not_write, write_atomically

GIVEN_KIT = "given.kit"
_MAIN = "from mos_client.cli.main import main; main()"
_MOST_LOG_BYTES = 64 << 10
_STOPS_WITHIN_S = 15.0
_starting = Lock()


@dataclass(frozen=True)
class Job:
    """One command's files: its name is that of them in `page/`."""

    state: Path
    name: str

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self._file(".log")

    def start(self, words: Sequence[str | Path]) -> None:
        """Start `mos-client` with these words, unless it runs already.

        Raises:
            StateError: its files cannot be written, or it cannot be started.

        """
        with _starting:
            if self.runs:
                return
            try:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                with self.log.open("wb") as out:
                    process = subprocess.Popen(
                        [sys.executable, "-c", _MAIN, *map(str, words)],
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        env=os.environ | {"PYTHONUNBUFFERED": "1"},
                        **_detached(),
                    )
            except OSError as error:
                raise could_not_write(self.log, error) from error
            created = psutil.Process(process.pid).create_time()
            values = {"process": [process.pid, created], "command": command_line("mos-client", *words)}
            write_atomically(self._file(".json"), json.dumps(values).encode(), mode=0o600)

    @property
    def runs(self) -> bool:
        """True while its process is there."""
        return (process := self._process()) is not None and process.status() != psutil.STATUS_ZOMBIE

    @property
    def command(self) -> str:
        """The command that it is, for people who want to type it."""
        return str(self._values().get("command", ""))

    @property
    def lines(self) -> list[str]:
        """The lines that it has printed."""
        try:
            with self.log.open("rb") as file:
                return file.read(_MOST_LOG_BYTES).decode("utf-8", "replace").splitlines()
        except OSError:
            return []

    @property
    def trouble(self) -> str | None:
        """Why it has failed, in its own words; None if it has not."""
        if self.runs:
            return None
        return next((line.removeprefix("error: ") for line in self.lines if line.startswith("error: ")), None)

    def _file(self, ending: str) -> Path:
        return self.state / "page" / f"{self.name}{ending}"

    def _values(self) -> dict[str, Any]:
        try:
            values = json.loads(self._file(".json").read_bytes())
            return values if isinstance(values, dict) else {}
        except (OSError, ValueError):
            return {}

    def _process(self) -> psutil.Process | None:
        try:
            number, created = self._values()["process"]
            process = psutil.Process(int(number))
            return process if process.create_time() == created else None
        except (psutil.Error, KeyError, TypeError, ValueError):
            return None


def join_words(session: Session, *flags: str) -> list[str | Path]:
    """Return the `join` of a state folder, as words after `mos-client`."""
    request = session.request
    words: list[str | Path] = ["join", session.state / GIVEN_KIT, request.images]
    words += ["--concept", request.concept, "--class", request.class_word, "--state", session.state]
    return [*words, *tuning_words(session), *flags]


def tuning_words(session: Session) -> list[str]:
    """Return the flags that `join` and `check` share, but those of the concept."""
    request = session.request
    flags = {"--base": request.base, "--steps": request.steps, "--mark": request.mark, "--vram": request.vram}
    flags |= {"--device": request.device, "--dtype": request.dtype}
    words = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
    return words + [word for name, value in request.settings.items() for word in ("--set", f"{name}={value}")]


def of_concept(session: Session) -> list[str]:
    """Return the flags of `join` that become part of the concept file."""
    request = session.request
    words = ["--author", request.author] if request.author else []
    words += ["--licence", request.licence] if request.licence else []
    return [*words, *(["--seed", str(request.seed)] if request.seed else [])]


def end_join(state: Path) -> None:
    """End the `join` of a state folder, however it was started. What it tuned is kept.

    Raises:
        StateError: it does not end.

    """
    activity = read_activity(state)
    if activity is None or not activity.runs:
        return
    try:
        process = psutil.Process(activity.process[0])
        process.terminate()
        process.wait(_STOPS_WITHIN_S)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired as error:
        raise StateError("it is still busy with a step: try again in a minute") from error


def _detached() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}
