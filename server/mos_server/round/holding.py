"""Publish the model of a round that was held back, by its operator's decision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mos_common.commands import command_line
from mos_common.errors import RequestError, StateError
from mos_server.round.candidate import is_current, is_made, publish, publishing_own
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import HELD_BACK, PUBLISHED, Round

if TYPE_CHECKING:
    from mos_common.base_model import Base


def held_back(journal: Journal, name: str | None = None) -> Round:
    """Return the round of that name, or the last one, if it is held back and may be published.

    Raises:
        RequestError: it is not held back, or a later round was published since.

    """
    rounds = journal.rounds.all()
    held = [each for each in rounds if each.status == HELD_BACK]
    if name is None and not held:
        raise RequestError("no round is held back: there is nothing to publish")
    round_ = held[-1] if name is None else journal.rounds.get(name)
    if round_.status != HELD_BACK:
        raise RequestError(f"{round_.id} is {round_.status}: only a round that is held back can be published")
    later = [each.id for each in rounds[rounds.index(round_) :] if each.status == PUBLISHED]
    if later:
        raise RequestError(f"{later[-1]} was published since, so {round_.id} would never be downloaded")
    return round_


def publish_held(state: State, journal: Journal, name: str | None, load: Callable[[], Base]) -> tuple[Round, Path]:
    """Publish a round that is held back; return it and the folder of its model.

    `load` loads the federation's base, which is needed only where own changes are published.

    Raises:
        RequestError: as `held_back`.
        StateError: its candidate is gone, or is not made of the concepts that the round has now.

    """
    round_ = held_back(journal, name)
    uploads, candidate = journal.uploads.admitted(round_.id), state.artefacts.candidate(round_.id)
    again = command_line("mos-server", "round", state.path)
    if not is_made(state, journal, round_) and not is_current(candidate, uploads, round_.settings.fusion, round_.id):
        raise StateError(
            f"{candidate} is gone, or is not made of the concepts that are in {round_.id} now: run another round ({again})"
        )
    base = load() if publishing_own(round_, uploads) else None
    folder = publish(state, journal, round_, uploads, base)
    if folder is None:
        raise StateError(f"{round_.id} has changed meanwhile and was not published: run another round ({again})")
    return journal.rounds.get(round_.id), folder
