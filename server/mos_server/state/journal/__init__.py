"""The journal: who may come in, what every round received, and where each round stands.

One database that the server, the process of a running round and the commands open at the same time. What is written here is
durable before the call returns, and a round that is killed at any point goes on from what stands here.

    database.py      the one module that knows which database it is; transactions and errors
    tables.py        tables and columns, and which revision of them this code reads
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
    """The journal of one state folder, by subject. May be shared by threads; other processes open their own.

    Opening it makes the tables, or brings those of an earlier release up to date.

    Raises:
        StateError: from here and from every call: the file cannot be used, or a newer release wrote it.

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
