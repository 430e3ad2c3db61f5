"""Whom a round waits for, and until when: the rule, and what a person is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mos_server.state.journal import Journal
from mos_server.state.records import ASKED, COLLECTING, SCORING, Member, Round, RoundSettings

# What a participant does, as the journal has it while a round runs.
TUNING, SCORING_NOW, LOST = "tuning", "scoring", "lost, asking again"
NO_SCORES, SCORES_REFUSED, SCORES_SET_ASIDE = "no scores", "scores refused", "scores set aside"
UNSCORABLE = frozenset({NO_SCORES, SCORES_REFUSED, SCORES_SET_ASIDE})
SCORING_BEGINS = "the candidate is being scored"
NAMED_AT_MOST = 8


def listed(names: Sequence[str]) -> str:
    """Return names as a line has room for them: all of a few, three of many."""
    if len(names) <= NAMED_AT_MOST:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more"


def have_enough(settings: RoundSettings, answered: int, waited_for: int) -> bool:
    """Return whether the share of those asked that has answered is enough for the grace to count.

    Whoever was lost as often as may be is no longer waited for, and does not count.
    """
    return answered > 0 and answered >= settings.share * (answered + waited_for)


class Grace:
    """The rule at one step of a round. It notes whom it waits for, and that it is over, once."""

    def __init__(self, settings: RoundSettings, note: Callable[[str], None]) -> None:
        self._settings = settings
        self._note = note
        self._noted: set[str] = set()

    def is_over(self, answered: int, waited_for: Sequence[str], silent_s: float) -> bool:
        """Return whether enough have answered, and nobody since for as long as the round allows.

        `answered` have, those in `waited_for` have not; the last answer came `silent_s` ago.
        """
        if not waited_for or not have_enough(self._settings, answered, len(waited_for)):
            return False
        names, grace_s = listed(waited_for), self._settings.grace_s
        # While many are waited for, one note says so: with every answer there would be another.
        which = names if len(waited_for) <= NAMED_AT_MOST else "many"
        if silent_s < grace_s:
            until = at_time(time.time() + grace_s - silent_s)
            self._note_once(
                f"waiting for {which}", f"enough have answered: waiting for {names} until {until}, or a new answer"
            )
            return False
        self._note_once(f"without {which}", f"going on without {names}: no answer for {duration(grace_s)} (--grace)")
        return True

    def _note_once(self, what: str, text: str) -> None:
        if what not in self._noted:
            self._noted.add(what)
            self._note(text)


def describe_waiting(round_: Round) -> str:
    """Describe what a round waits for while it collects: "at least 2 concepts, until ..."."""
    settings = round_.settings
    concepts = f"{settings.wait} concept{'s' if settings.wait > 1 else ''}"
    return (
        f"at least {concepts}, until {at_time(round_.deadline)} at the latest; once {settings.share:.0%} of those "
        f"asked have answered, until {duration(settings.grace_s)} after the last answer"
    )


@dataclass(frozen=True)
class Waiting:
    """Whom a round waits for now, and until when at the latest, in seconds since the epoch."""

    names: Sequence[str]
    until: float


def waited_for(journal: Journal, round_: Round) -> Waiting | None:
    """Return whom a round waits for; None while it waits for nobody."""
    settings = round_.settings
    if round_.status in (ASKED, COLLECTING):
        uploads = journal.uploads.of(round_.id)
        answered, latest = len({upload.key for upload in uploads}), round_.deadline
        answers = [upload.received for upload in uploads]
        enough = sum(upload.refused is None for upload in uploads) >= settings.wait
    elif round_.status == SCORING:
        begun = [at for _, at, text in journal.notes.of(round_.id) if text.startswith(SCORING_BEGINS)]
        if not begun:
            return None
        done = [each for each in journal.rounds.members(round_.id) if each.activity in {"scored", *UNSCORABLE}]
        answered, answers, latest = len(done), [each.at for each in done], begun[-1] + settings.scoring_s
        enough = True
    else:
        return None
    silent = [each.name for each in journal.rounds.members(round_.id) if _is_waited_for(each, round_)]
    if enough and answers and silent and have_enough(settings, answered, len(silent)):
        latest = min(latest, max(answers) + settings.grace_s)
    return Waiting(silent, latest)


def describe_waited_for(journal: Journal, round_: Round) -> Iterator[str]:
    """Yield a line that says who is waited for now and until when, if anybody is."""
    if (waiting := waited_for(journal, round_)) is not None:
        yield f"waiting for {listed(waiting.names) or 'somebody to come'}, until {at_time(waiting.until)}"


def _is_waited_for(member: Member, round_: Round) -> bool:
    return member.activity in (SCORING_NOW if round_.status == SCORING else TUNING, LOST)


def at_time(seconds: float) -> str:
    """Return a time (s since the epoch) as people here write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def duration(seconds: float) -> str:
    """Return seconds as the flags take them: 45s, 10m, 2h."""
    for unit, size in (("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"
