"""Rounds: the settings and the state of each, and the activity of every participant."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Any, cast, get_type_hints

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Select, func, insert, select, update

from mos_common.errors import RequestError, StateError
from mos_server.state.journal.database import Database
from mos_server.state.journal.tables import members, participants, rounds
from mos_server.state.records import ASKED, PUBLISHED, UNFINISHED, Member, Round, RoundSettings

_SETTINGS = TypeAdapter(RoundSettings)


class Rounds:
    """All rounds. At most one is unfinished, and none returns to an earlier state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(self, settings: RoundSettings) -> Round:
        """Ask for a round, which the running server then starts.

        Raises:
            RequestError: another round is not finished.

        """
        with self._database.writing() as db:
            if (running := self.unfinished()) is not None:
                raise RequestError(
                    f"{running.id} is {running.status}: let it finish, or cancel it, before another begins"
                )
            count = db.execute(select(func.count()).select_from(rounds)).scalar_one()
            name = f"round-{count + 1:03d}"
            db.execute(insert(rounds).values(id=name, status=ASKED, settings=asdict(settings), asked=time.time()))
        return self.get(name)

    def get(self, name: str) -> Round:
        """Return one round.

        Raises:
            RequestError: there is no round of that name.

        """
        matches = self._rounds(select(rounds).where(rounds.c.id == name))
        if not matches:
            raise RequestError(f"there is no round {name!r}")
        return matches[0]

    def all(self) -> list[Round]:
        """Return all rounds, earliest first."""
        return self._rounds(select(rounds).order_by(rounds.c.asked, rounds.c.id))

    def unfinished(self) -> Round | None:
        """Return the round that a server still has to work on, if any."""
        return next((each for each in self.all() if each.unfinished), None)

    def latest_published(self) -> Round | None:
        """Return the round whose model was published last, if any."""
        return next((each for each in reversed(self.all()) if each.status == PUBLISHED), None)

    def advance(self, name: str, status: str, reason: str = "") -> None:
        """Move a round to its next status, unless it was cancelled or has ended."""
        ended = None if status in UNFINISHED else time.time()
        with self._database.writing() as db:
            db.execute(
                update(rounds)
                .where(rounds.c.id == name, rounds.c.status.in_(UNFINISHED))
                .values(status=status, reason=reason, ended=ended)
            )

    def set_activity(self, name: str, key: str, activity: str, *, attempts: int = 0) -> None:
        """Set a participant's activity in a round, and add `attempts` to those made."""
        is_member = (members.c.round == name) & (members.c.key == key)
        now = time.time()
        with self._database.writing() as db:
            known = db.execute(
                update(members)
                .where(is_member)
                .values(activity=activity, attempts=members.c.attempts + attempts, at=now)
            ).rowcount
            if not known:
                db.execute(insert(members).values(round=name, key=key, activity=activity, attempts=attempts, at=now))

    def members(self, name: str) -> list[Member]:
        """Return the activity of every participant in a round, sorted by name."""
        query = (
            select(members.c.key, participants.c.name, members.c.activity, members.c.attempts, members.c.at)
            .join(participants, participants.c.key == members.c.key)
            .where(members.c.round == name)
            .order_by(participants.c.name, members.c.key)
        )
        return [Member(**row) for row in self._database.rows(query)]

    def _rounds(self, query: Select[Any]) -> list[Round]:
        return [
            Round(**{**row, "settings": _settings(row["id"], row["settings"])}) for row in self._database.rows(query)
        ]


def _settings(round_id: str, values: dict[str, Any]) -> RoundSettings:
    """Return a round's settings. Those that its release did not have yet are at their defaults."""
    if unknown := sorted(_unknown(RoundSettings, values)):
        raise StateError(
            f"{round_id} was asked for with {', '.join(unknown)}, which this release does not know: "
            "install the release that asked for it"
        )
    try:
        return _SETTINGS.validate_python(values)
    except (ValidationError, RequestError) as error:
        raise StateError(
            f"the settings of {round_id} cannot be used ({error}): restore the journal from a backup"
        ) from error


def _unknown(kind: type, values: dict[str, Any]) -> Iterator[str]:
    known = get_type_hints(kind)
    for name, value in values.items():
        if name not in known:
            yield name
        elif is_dataclass(known[name]) and isinstance(value, dict):
            yield from (f"{name}.{each}" for each in _unknown(cast("type", known[name]), value))
