"""Erase a person from every table of the journal."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from sqlalchemy import Column, Connection, delete, select, update

from mos_server.state.journal.tables import invitations, members, notes, participants, rounds, uploads

# Every column with sentences. A new one belongs here: a sentence may name anybody.
_PROSE: tuple[Column[Any], ...] = (notes.c.text, rounds.c.reason, members.c.activity, uploads.c.refused)


def delete_person(db: Connection, name: str, keys: Collection[str]) -> int:
    """Delete the rows that are about one person, and return the number of uploads among them."""
    db.execute(delete(invitations).where(invitations.c.participant == name))
    db.execute(delete(members).where(members.c.key.in_(keys)))
    db.execute(delete(participants).where(participants.c.name == name))
    return db.execute(delete(uploads).where(uploads.c.participant == name)).rowcount


def blot_texts(db: Connection, blotted: Callable[[str], str]) -> None:
    """Replace sentences, which may name a person in anybody's rows, by what `blotted` returns."""
    for column in _PROSE:
        keys = list(column.table.primary_key.columns)
        for row in db.execute(select(column, *keys).where(column.is_not(None))).mappings().all():
            text = row[column.name]
            if (after := blotted(text)) != text:
                is_it = [key == row[key.name] for key in keys]
                db.execute(update(column.table).where(*is_it).values({column.name: after}))


def change_settings(db: Connection, changed: Callable[[Any], Any]) -> None:
    """Replace the settings of every round by what `changed` returns."""
    for row in db.execute(select(rounds.c.id, rounds.c.settings)).mappings().all():
        if (after := changed(row["settings"])) != row["settings"]:
            db.execute(update(rounds).where(rounds.c.id == row["id"]).values(settings=after))
