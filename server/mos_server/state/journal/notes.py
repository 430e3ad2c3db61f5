"""Notes of rounds: one line for everything that happens, for those who follow a round."""

from __future__ import annotations

import time

from sqlalchemy import insert, select

from mos_server.state.journal.database import Database
from mos_server.state.journal.tables import notes


class Notes:
    """The notes of every round, in the order in which they were made."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, round_id: str, text: str) -> None:
        """Add a note to a round."""
        with self._database.writing() as db:
            db.execute(insert(notes).values(round=round_id, at=time.time(), text=text))

    def of(self, round_id: str, after: int = 0) -> list[tuple[int, float, str]]:
        """Return a round's notes after number `after`: number, time (s since the epoch), text."""
        query = select(notes).where(notes.c.round == round_id, notes.c.id > after).order_by(notes.c.id)
        return [(row["id"], row["at"], row["text"]) for row in self._database.rows(query)]
