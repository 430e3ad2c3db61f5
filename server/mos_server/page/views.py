"""What the page shows, read from the journal and the state folder when somebody looks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mos_common.errors import StateError
from mos_server.monitoring import readings
from mos_server.page.federation import Federation
from mos_server.round.waiting import describe_waited_for, describe_waiting
from mos_server.state.records import (
    FAILED,
    HELD_BACK,
    PUBLISHED,
    UNFINISHED,
    Participant,
    Round,
    describe_fusion,
)
from mos_server.state.rotation import warnings_of

LOG_LINES, AUDIT_LINES, ROUNDS_SHOWN = 150, 40, 200
_KINDS = {PUBLISHED: "good", HELD_BACK: "warn", FAILED: "bad", **dict.fromkeys(UNFINISHED, "info")}


def kind_of(status: str) -> str:
    """Return how a round's state is coloured."""
    return _KINDS.get(status, "")


@dataclass(frozen=True)
class Person:
    """A name, its keys, and what became of its kits."""

    name: str
    keys: list[Participant]
    kits: Mapping[str, int]
    open_until: float | None

    @property
    def seen(self) -> readings.Seen:
        """When it was last here."""
        last = [each.seen for each in self.keys if each.seen is not None and each.revoked is None]
        return readings.Seen(self.name, max(last, default=None), self.barred)

    @property
    def barred(self) -> bool:
        """True if it has no key that is admitted, and had one."""
        return bool(self.keys) and all(each.revoked is not None for each in self.keys)


def people(federation: Federation) -> list[Person]:
    """Return everybody who has enrolled or was invited: those who are here first, then by name."""
    journal, now = federation.journal, time.time()
    keys = sorted(journal.participants.all(), key=lambda each: each.name)
    of = {name: list(each) for name, each in groupby(keys, key=lambda each: each.name)}
    kits: dict[str, list[tuple[float, float | None]]] = {}
    for name, expires, used in journal.participants.invitations():
        kits.setdefault(name, []).append((expires, used))
    found = []
    for name in sorted({*of, *kits}):
        counts = Counter(
            "used" if used is not None else "expired" if expires < now else "open"
            for expires, used in kits.get(name, [])
        )
        unused = [expires for expires, used in kits.get(name, []) if used is None and expires >= now]
        found.append(Person(name, of.get(name, []), counts, max(unused, default=None)))
    return sorted(found, key=lambda each: (not each.seen.online, each.barred, each.name))


@dataclass(frozen=True)
class RoundLine:
    """One round in the list of all."""

    round: Round
    fused: int
    refused: int


def rounds(federation: Federation) -> list[RoundLine]:
    """Return the newest rounds, newest first."""
    counts = federation.journal.uploads.counts()
    newest = reversed(federation.journal.rounds.all()[-ROUNDS_SHOWN:])
    return [RoundLine(each, *counts.get(each.id, (0, 0))) for each in newest]


@dataclass(frozen=True)
class Progress:
    """What an open round waits for, who does what, and its last notes."""

    waits: list[str]
    members: list[Any]
    notes: list[tuple[int, float, str]]


def progress(federation: Federation, round_: Round) -> Progress:
    """Return what happens in an open round."""
    journal, waits = federation.journal, list[str]()
    with suppress(StateError):
        waits = [f"It waits for {describe_waiting(round_)}.", *describe_waited_for(journal, round_)]
    return Progress(waits, journal.rounds.members(round_.id), journal.notes.of(round_.id)[-8:])


def timeline(federation: Federation, round_: Round) -> list[tuple[str, float, float | None]]:
    """Return the states of a round: name, when it began, and how many seconds it lasted."""
    states = federation.journal.audit.states_of(round_.id) or [("asked", round_.asked)]
    ends = [at for _, at in states[1:]] + [time.time() if round_.unfinished else None]
    return [(state, at, None if end is None else end - at) for (state, at), end in zip(states, ends, strict=True)]


def settings_of(round_: Round) -> list[tuple[str, str]]:
    """Return the settings of a round in words; what is damaged says so."""
    try:
        settings = round_.settings
    except StateError as error:
        return [("settings", str(error))]
    least = "no least identity" if settings.min_identity is None else f"at least {settings.min_identity:g}"
    return [
        ("fusion", describe_fusion(settings.fusion)),
        ("waits for", f"{settings.wait} concept{'' if settings.wait == 1 else 's'}"),
        ("deadline", _span(settings.deadline_s)),
        ("grace", f"{_span(settings.grace_s)} once {settings.share:.0%} answered"),
        ("scoring", _span(settings.scoring_s)),
        ("identity", f"{least}, flagged above a loss of {settings.flag_loss:g}"),
        ("publishes", "own changes too" if settings.publishes == "own" else "the fused model"),
        ("review", "by the operator before it is published" if settings.review else "none"),
    ]


def overview(federation: Federation) -> dict[str, Any]:
    """Return what the first page shows."""
    journal, everybody = federation.journal, people(federation)
    latest, running = journal.rounds.latest_published(), journal.rounds.unfinished()
    total, free = readings.disk(federation.state)
    return {
        "why_not_ready": federation.health.why_not_ready(),
        "warnings": warnings_of(federation.state),
        "online": [each.name for each in everybody if each.seen.online],
        "admitted": sum(bool(each.keys) and not each.barred for each in everybody),
        "invited": sum(each.open_until is not None for each in everybody),
        "running": running,
        "progress": None if running is None else progress(federation, running),
        "held": next((each for each in reversed(journal.rounds.all()) if each.status == HELD_BACK), None),
        "latest": latest,
        "recent": rounds(federation)[:6],
        "disk_total": total,
        "disk_free": free,
    }


def server(federation: Federation) -> dict[str, Any]:
    """Return what the page about the server shows: settings, sizes, certificates, the audit."""
    config, (total, free) = federation.state.config, readings.disk(federation.state)
    return {
        "config": config,
        "fusion": describe_fusion(config.fusion),
        "sizes": federation.sizes(),
        "disk_total": total,
        "disk_free": free,
        "certificates": readings.certificate_seconds(federation.state),
        "warnings": warnings_of(federation.state),
        "audit": federation.journal.audit.last(AUDIT_LINES),
    }


def _span(seconds: float) -> str:
    from mos_common.pages.formats import duration

    return duration(seconds)
