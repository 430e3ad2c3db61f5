"""Whether a server is ready: its ports answer, its journal can be read, its rounds get on."""

from __future__ import annotations

import time

from mos_common.errors import StateError
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.pause import pause_of

# Rounds are looked after twice a second; a step that starts a process takes seconds.
_STEPS_WITHIN_S = 60.0


class Health:
    """What the server says about itself. One object may be used by several threads."""

    def __init__(self, state: State, journal: Journal) -> None:
        self._state, self._journal = state, journal
        self._listening = False
        self._stepped = time.monotonic()

    def listening(self) -> None:
        """Note that the ports of participants answer."""
        self._listening = True

    def stepped(self) -> None:
        """Note that the server has just looked after its rounds."""
        self._stepped = time.monotonic()

    def why_not_ready(self) -> list[str]:
        """Return what keeps the server from serving; [] if it is ready."""
        reasons = [] if self._listening else ["the ports of participants are not open"]
        if (silent := time.monotonic() - self._stepped) > _STEPS_WITHIN_S:
            reasons.append(f"nobody has looked after the rounds for {silent:.0f} s")
        try:
            if self._listening:
                self._journal.rounds.unfinished()
        except StateError as error:
            reasons.append(str(error))
        if pause := pause_of(self._state):
            reasons.append(f"paused: {pause}")
        return reasons
