"""Rounds: the settings and the state of each, and the activity of every participant."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Select, func, insert, select, update

from mos_common.errors import RequestError
from mos_server.state.clock import moment
from mos_server.state.journal.database import Database
from mos_server.state.journal.tables import members, participants, rounds
from mos_server.state.records import ASKED, CANCELLED, HELD_BACK, PUBLISHED, UNFINISHED, Member, Round, RoundSettings

_ROUNDS = select(
    rounds.c.id,
    rounds.c.status,
    rounds.c.reason,
    rounds.c.settings.label("values"),
    rounds.c.asked,
    rounds.c.ended,
    rounds.c.manifest,
    rounds.c.clock,
)


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
            values = {"id": name, "status": ASKED, "settings": asdict(settings)}
            db.execute(insert(rounds).values(**values, asked=time.time(), clock=moment()))
        return self.get(name)

    def get(self, name: str) -> Round:
        """Return one round.

        Raises:
            RequestError: there is no round of that name.

        """
        matches = self._rounds(_ROUNDS.where(rounds.c.id == name))
        if not matches:
            raise RequestError(f"there is no round {name!r}")
        return matches[0]

    def all(self) -> list[Round]:
        """Return all rounds, earliest first."""
        return self._rounds(_ROUNDS.order_by(rounds.c.asked, rounds.c.id))

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

    def publish(self, name: str, manifest: str) -> None:
        """Publish a round: from now on its model is the one whose manifest has this SHA-256."""
        with self._database.writing() as db:
            self.advance(name, PUBLISHED)
            is_it = (rounds.c.id == name) & (rounds.c.status == PUBLISHED)
            db.execute(update(rounds).where(is_it).values(manifest=manifest))

    def publish_held(self, name: str, manifest: str) -> None:
        """Publish a round that is held back, as `publish` does one that is not."""
        is_held = (rounds.c.id == name) & (rounds.c.status == HELD_BACK)
        values = {"status": PUBLISHED, "reason": "", "ended": time.time(), "manifest": manifest}
        with self._database.writing() as db:
            db.execute(update(rounds).where(is_held).values(values))

    def hold_back(self) -> Round:
        """Have the model of the unfinished round held back when it is made, and return the round.

        Raises:
            RequestError: no round is unfinished.
            StateError: its settings are of another release, or damaged.

        """
        with self._database.writing() as db:
            if (running := self.unfinished()) is None:
                raise RequestError(
                    "no round is running: there is nothing to hold back, and a published model is never changed"
                )
            values = asdict(replace(running.settings, review=True))
            db.execute(update(rounds).where(rounds.c.id == running.id).values(settings=values))
        return self.get(running.id)

    def cancel(self) -> Round:
        """Cancel the unfinished round, and return it. What was uploaded is kept.

        Raises:
            RequestError: no round is unfinished.

        """
        with self._database.writing():
            if (running := self.unfinished()) is None:
                raise RequestError("no round is running: there is nothing to cancel")
            self.advance(running.id, CANCELLED, "by the operator")
        return running

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
        return [Round(**row) for row in self._database.rows(query)]
