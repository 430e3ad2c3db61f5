"""Show a round to a person while it runs and after it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from mos_common.commands import command_line
from mos_common.errors import FusionError, NetworkError, StateError
from mos_common.shell import say
from mos_server.round.candidate import lost_identity
from mos_server.state.folder import State, is_served
from mos_server.state.journal import Journal
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
    last_note, last_served = 0, time.monotonic()
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
            show("", _doing(journal, round_) if served else "waiting for the server to start")
            time.sleep(_LOOK_EVERY_S)
    if round_.status != PUBLISHED:
        raise FusionError(
            f"{round_id} was not published: {round_.status}{f', {round_.reason}' if round_.reason else ''}"
        )
    return round_


def describe_round(journal: Journal, round_: Round) -> Iterator[str]:
    """Yield the lines of `mos-server status` about one round."""
    ended = f", {round_.reason}" if round_.reason else ""
    yield f"{round_.id}: {round_.status}{ended} (asked for {_date(round_.asked)})"
    uploads, lost = journal.uploads.of(round_.id), dict[str, float]()
    try:
        lost = lost_identity(round_, uploads)
        described = f"fusion: {describe_fusion(round_.settings.fusion)}"
    except StateError as error:
        described = str(error)
    yield f"  {described}"
    for member in journal.rounds.members(round_.id) if round_.unfinished else ():
        yield f"  {member.name}: {member.activity} since {_date(member.at)}, asked {_times(member.attempts)}"
    for upload in uploads:
        if upload.refused is not None:
            yield f"  {upload.participant} {upload.concept}: not in it: {upload.refused}"
            continue
        scores = ""
        if upload.identity is not None:
            scores = f", identity {upload.identity}"
        if upload.token in lost:
            scores += f", flagged: lost {lost[upload.token]:.3f}"
        yield f"  {upload.token}: {upload.digest[:12]}, {upload.bytes / 1e6:.2f} MB{scores}"


def describe_people(journal: Journal) -> Iterator[str]:
    """Yield the lines of `mos-server status` about participants and invitations."""
    participants = journal.participants.all()
    yield f"participants: {len(participants)}" if participants else "participants: none has enrolled yet"
    for participant in participants:
        presence = f"last here {_date(participant.seen)}" if participant.seen else "never here since"
        gone = ", revoked" if participant.revoked else ""
        enrolled = f"key {participant.key[:12]}, enrolled {_date(participant.admitted)}"
        yield f"  {participant.name}: {enrolled}, {presence}{gone}"
    for name, expires, used in journal.participants.invitations():
        if used is None:
            word = "expired" if expires < time.time() else "good until"
            yield f"  {name}: invited, kit {word} {_date(expires)}"


def _doing(journal: Journal, round_: Round) -> str:
    activities = ", ".join(f"{member.name} {member.activity}" for member in journal.rounds.members(round_.id))
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


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
