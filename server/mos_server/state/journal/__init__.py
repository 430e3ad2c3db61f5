"""The journal: admitted participants, the uploads of every round, and the state of each round.

The server, the process of a running round and the commands open it at the same time. A call writes
to the disk before it returns, so that a round killed at any point resumes from here.

    database.py     the database itself: opening, transactions, errors
    embedded.py, postgresql.py      what is special in SQLite, and in a PostgreSQL server
    tables.py       tables and columns, and their revision
    audit.py        a line for every change, and for what else is done
    forgetting.py   erase a person from every table
    participants.py, rounds.py, uploads.py, notes.py     one subject each
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mos_server.state.audit import FILE as AUDIT
from mos_server.state.journal.audit import Audit
from mos_server.state.journal.database import Database
from mos_server.state.journal.forgetting import blot_texts, change_settings, delete_person
from mos_server.state.journal.notes import Notes
from mos_server.state.journal.participants import Participants
from mos_server.state.journal.postgresql import PostgreSQL
from mos_server.state.journal.rounds import Rounds
from mos_server.state.journal.uploads import Uploads

__all__ = ["Journal"]


class Journal:
    """The journal of one state folder, by subject. Threads may share one; processes open their own.

    Opening it creates the tables, or brings those of an earlier release up to date. It is in a file
    of the folder, or in a PostgreSQL server.

    Raises:
        StateError: it cannot be used, or a newer release wrote it. Every call may raise it.

    """

    def __init__(self, place: Path | PostgreSQL) -> None:
        self._database = Database(place)
        try:
            self.audit = Audit(self._database, self._database.place.folder / AUDIT)
        except BaseException:
            self._database.close()
            raise
        self.participants = Participants(self._database)
        self.rounds = Rounds(self._database)
        self.uploads = Uploads(self._database, self.participants)
        self.notes = Notes(self._database)

    @contextmanager
    def decision(self) -> Iterator[None]:
        """Run the block as one transaction: what it reads is still true when it has written.

        Raises:
            StateError: the journal cannot be used.

        """
        with self._database.writing():
            yield

    def forget(
        self,
        name: str,
        keys: Collection[str],
        mentions: Callable[[str], bool],
        blotted: Callable[[str], str],
        without_weights: Callable[[Any], Any],
    ) -> int:
        """Delete a person's rows, and blot out what `mentions` them in the texts of others.

        Return the number of uploads that were deleted. The audit keeps a line about it.
        """
        with self._database.writing() as db:
            count = delete_person(db, name, keys)
            blot_texts(db, blotted)
            change_settings(db, without_weights)
            self.audit.add("forgotten", person=name, details={"keys": len(keys), "uploads": count})
            self.audit.forget(name, mentions)
        return count

    def compact(self) -> None:
        """Rewrite the database so that nothing that was deleted is left in its files.

        Raises:
            StateError: another process is reading it.

        """
        self._database.compact()

    def close(self) -> None:
        """Close its connections."""
        self._database.close()
