"""Pause, stop and resume a tuning from outside its process, through one file.

The file holds one word, `pause` or `stop`; without it the tuning runs. It is read after each step,
and a checkpoint is written before either is obeyed, so that nothing is lost if the machine is
switched off meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mos_common.errors import RequestError
from mos_common.files import write_atomically

STEERING = "steering"
_LOOK_AGAIN_S = 0.5


class Wanted(StrEnum):
    """What the owner of a tuning wants it to do."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


@dataclass(frozen=True)
class Steering:
    """The file by which one tuning is steered."""

    file: Path

    @classmethod
    def of(cls, state: Path) -> Steering:
        """Return the steering of the tuning in a participant's state folder."""
        return cls(state / STEERING)

    @property
    def wanted(self) -> Wanted:
        """What is wanted now; what cannot be read is no order."""
        try:
            return Wanted(self.file.read_text(encoding="utf-8").strip())
        except (OSError, ValueError):
            return Wanted.RUN

    def want(self, wanted: Wanted) -> None:
        """Ask for something.

        Raises:
            StateError: the file cannot be written.

        """
        if wanted is Wanted.RUN:
            self.file.unlink(missing_ok=True)
        else:
            write_atomically(self.file, f"{wanted}\n".encode())

    def obey(self, step: int, save: Callable[[], None]) -> None:
        """Return at once if the tuning is to run, or as soon as it is to run on.

        `save` writes a checkpoint of the `step` that is finished.

        Raises:
            RequestError: it is to stop.

        """
        if self.wanted is Wanted.RUN:
            return
        save()
        while (wanted := self.wanted) is Wanted.PAUSE:
            time.sleep(_LOOK_AGAIN_S)
        if wanted is Wanted.STOP:
            raise RequestError(f"tuning was stopped after step {step}, as asked: start it again, and it goes on there")
