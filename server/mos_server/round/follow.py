"""Show a round to a person while it runs and after it has ended."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

from mos_common.commands import command_line
from mos_common.errors import FusionError, NetworkError, StateError
from mos_common.shell import say
from mos_server.models.worst_influences import worst_influences
from mos_server.round.candidate import lost_identity
from mos_server.round.waiting import NAMED_AT_MOST, at_time, describe_waited_for, describe_waiting, duration
from mos_server.state.folder import State, is_served
from mos_server.state.journal import Journal
from mos_server.state.pause import pause_of
from mos_server.state.published import published_model
from mos_server.state.records import PUBLISHED, Round, describe_fusion

_LOOK_EVERY_S = 0.5
# A server takes seconds to start; if it does not run after this long, nobody has started it.
_SERVER_STARTS_WITHIN_S = 60.0
_SUMMARY_EVERY_S = 30.0
Show = Callable[[str, str], None]


def follow_round(state: State, journal: Journal, round_id: str) -> Round:
    """Show what happens until the round has ended, and return the round as it ended.

    Raises:
        NetworkError: no server is working on it.
        FusionError: the round ended without a published model.

    """
    last_note, last_served, last_pause = 0, time.monotonic(), ""
    with _showing() as show:
        while True:
            round_ = journal.rounds.get(round_id)
            for number, _, text in journal.notes.of(round_id, last_note):
                last_note = number
                show(text, "")
            if not round_.unfinished:
                break
            served = is_served(state) is not False
            last_served = time.monotonic() if served else last_served
            if time.monotonic() - last_served > _SERVER_STARTS_WITHIN_S:
                raise NetworkError(
                    f"no server is running on {state.path}: start or resume {round_id} with "
                    f"{command_line('mos-server', 'serve', state.path)}"
                )
            if (pause := pause_of(state)) != last_pause:
                last_pause = pause
                show(f"paused: {pause}" if pause else "the server goes on", "")
            doing = f"paused: {pause}" if pause else _doing(journal, round_)
            show("", doing if served else "waiting for the server to start")
            time.sleep(_LOOK_EVERY_S)
    if round_.status != PUBLISHED:
        raise FusionError(
            f"{round_id} was not published: {round_.status}{f', {round_.reason}' if round_.reason else ''}"
        )
    return round_


def describe_round(journal: Journal, round_: Round) -> Iterator[str]:
    """Yield the lines of `mos-server status` about one round."""
    ended = f", {round_.reason}" if round_.reason else ""
    yield f"{round_.id}: {round_.status}{ended} (asked for {at_time(round_.asked)})"
    uploads, lost = journal.uploads.of(round_.id), dict[str, float]()
    try:
        lost = lost_identity(round_, uploads)
        described = f"fusion: {describe_fusion(round_.settings.fusion)}"
    except StateError as error:
        described = str(error)
    yield f"  {described}"
    if round_.unfinished:
        with suppress(StateError):
            yield f"  it waits for {describe_waiting(round_)}; for scores {duration(round_.settings.scoring_s)}"
            yield from (f"  {line}" for line in describe_waited_for(journal, round_))
    for member in journal.rounds.members(round_.id) if round_.unfinished else ():
        yield f"  {member.name}: {member.activity} since {at_time(member.at)}, asked {_times(member.attempts)}"
    for upload in uploads:
        if upload.refused is not None:
            yield f"  {upload.participant} {upload.concept}: not in it: {upload.refused}"
            continue
        scores = ""
        if upload.identity is not None:
            scores = f", identity {upload.identity}"
        if upload.token in lost:
            scores += f", flagged: lost {lost[upload.token]:.3f}"
        own = ", own changes may be published" if upload.own else ""
        yield f"  {upload.token}: {upload.digest[:12]}, {upload.bytes / 1e6:.2f} MB{scores}{own}"


def model_trouble(state: State, journal: Journal, round_: Round) -> str:
    """Return why the model of a published round is not handed out; an empty text if it is."""
    try:
        published_model(state, journal, round_.id)
    except StateError as error:
        return str(error)
    return ""


def describe_influence(state: State, round_: Round) -> Iterator[str]:
    """Yield the lines of `mos-server status` about what a round's concepts do to each other."""
    for folder in (state.artefacts.model(round_.id), state.artefacts.candidate(round_.id)):
        # None yet, a damaged one, or a store that cannot be used now.
        with suppress(StateError, ValueError, LookupError, TypeError):
            for line in worst_influences(json.loads(state.artefacts.manifest(folder.name) or "")):
                yield f"  {line}"
            return


def _doing(journal: Journal, round_: Round) -> str:
    members = journal.rounds.members(round_.id)
    activities = ", ".join(f"{member.name} {member.activity}" for member in members)
    if len(members) > NAMED_AT_MOST:
        counted = Counter(member.activity for member in members).most_common()
        activities = ", ".join(f"{count} {activity}" for activity, count in counted)
    return f"{round_.status}: {activities}" if activities else f"{round_.status}: nobody is here yet"


@contextmanager
def _showing() -> Iterator[Show]:
    """Yield a function that shows a note, and what is happening now.

    On a terminal the latter is a moving line; elsewhere it is printed every half minute.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        yield _plain_lines()
        return
    with console.status("") as status:

        def show(note: str, now: str) -> None:
            if note:
                console.print(f"{time.strftime('%H:%M:%S')}  {note}", markup=False)
            if now:
                status.update(now.replace("[", "\\["))

        yield show


def _plain_lines() -> Show:
    last_summary, last = "", 0.0

    def show(note: str, now: str) -> None:
        nonlocal last_summary, last
        if note:
            say(note)
            last = time.monotonic()
        elif now and now != last_summary and time.monotonic() - last > _SUMMARY_EVERY_S:
            say(now)
            last_summary, last = now, time.monotonic()

    return show


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
