"""The journal: admitted participants, the uploads of every round, and the state of each round.

The server, the process of a running round and the commands open it at the same time. A call writes
to the disk before it returns, so that a round killed at any point resumes from here.

    database.py     the database itself: opening, transactions, errors
    tables.py       tables and columns, and their revision
    participants.py, rounds.py, uploads.py, notes.py     one subject each
"""

from __future__ import annotations

from pathlib import Path

from mos_server.state.journal.database import Database
from mos_server.state.journal.notes import Notes
from mos_server.state.journal.participants import Participants
from mos_server.state.journal.rounds import Rounds
from mos_server.state.journal.uploads import Uploads

__all__ = ["Journal"]


class Journal:
    """The journal of one state folder, by subject. Threads may share one; processes open their own.

    Opening it creates the tables, or brings those of an earlier release up to date.

    Raises:
        StateError: the file cannot be used, or a newer release wrote it. Every call may raise it.

    """

    def __init__(self, file: Path) -> None:
        self._database = Database(file)
        self.participants = Participants(self._database)
        self.rounds = Rounds(self._database)
        self.uploads = Uploads(self._database, self.participants)
        self.notes = Notes(self._database)

    def close(self) -> None:
        """Release the file."""
        self._database.close()
