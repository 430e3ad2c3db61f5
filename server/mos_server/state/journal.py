"""The journal: who may come in, what every round received, and where it stands.

One sqlite3 file that the server, the process of a running round and the commands open at the same time. What is written here
is durable before the call returns, and a round that is killed at any point goes on from what stands here.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from mos_common.errors import RequestError, StateError, TrustError
from mos_common.identity_scores import Identity
from mos_server.state.records import ASKED, PUBLISHED, UNFINISHED, Member, Participant, Round, RoundSettings, Upload

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invitations (
    token_hash TEXT PRIMARY KEY, participant TEXT NOT NULL, expires REAL NOT NULL, used REAL);
CREATE TABLE IF NOT EXISTS participants (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, pem BLOB NOT NULL, admitted REAL NOT NULL, revoked REAL, seen REAL);
CREATE TABLE IF NOT EXISTS rounds (
    id TEXT PRIMARY KEY, status TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', settings TEXT NOT NULL,
    asked REAL NOT NULL, ended REAL);
CREATE TABLE IF NOT EXISTS members (
    round TEXT NOT NULL, key TEXT NOT NULL, activity TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL,
    PRIMARY KEY (round, key));
CREATE TABLE IF NOT EXISTS uploads (
    id INTEGER PRIMARY KEY, round TEXT, key TEXT NOT NULL, participant TEXT NOT NULL, concept TEXT NOT NULL,
    digest TEXT NOT NULL, bytes INTEGER NOT NULL, received REAL NOT NULL, refused TEXT, identity TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS one_name_per_participant ON uploads (round, participant, concept)
    WHERE refused IS NULL AND round IS NOT NULL;
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, round TEXT NOT NULL, at REAL NOT NULL, text TEXT NOT NULL);
"""


class Store:
    """The journal of one state folder. May be shared by threads; other processes open their own."""

    def __init__(self, database: Path) -> None:
        self._path = database
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(database, timeout=30, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(_SCHEMA)
            database.chmod(0o600)
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    # Who may come in

    def invite(self, participant: str, *, valid_s: float) -> tuple[str, float]:
        """A one-time token for a participant, and when it expires. Only its digest is kept."""
        token, expires = secrets.token_urlsafe(32), time.time() + valid_s
        with self._transaction() as db:
            db.execute("INSERT INTO invitations VALUES (?, ?, ?, NULL)", (_token_hash(token), participant, expires))
        return token, expires

    def enrol(self, token: str, key: str, pem: bytes) -> str:
        """Admit a key by its token; the participant's name. The same key may repeat its own enrolment: its reply was lost.

        Raises:
            TrustError: the token is unknown, expired or used, or the key is somebody else's or revoked.

        """
        now = time.time()
        with self._transaction() as db:
            invitation = db.execute("SELECT * FROM invitations WHERE token_hash = ?", (_token_hash(token),)).fetchone()
            member = db.execute("SELECT * FROM participants WHERE key = ?", (key,)).fetchone()
            if invitation is None:
                raise TrustError(
                    "this kit is not of this server, or its server was made anew: ask the operator for a new one"
                )
            name = str(invitation["participant"])
            if member is not None and member["name"] == name and member["revoked"] is None and invitation["used"]:
                return name
            if invitation["used"]:
                raise TrustError(
                    f"this kit of {name!r} has been used already, by another key: ask the operator for a new one"
                )
            if invitation["expires"] < now:
                raise TrustError(f"this kit of {name!r} has expired: ask the operator for a new one")
            if member is not None:
                raise TrustError(
                    f"this key belongs to {member['name']!r} already: use a new --state folder for {name!r}"
                )
            db.execute("UPDATE invitations SET used = ? WHERE token_hash = ?", (now, _token_hash(token)))
            db.execute("INSERT INTO participants VALUES (?, ?, ?, ?, NULL, NULL)", (key, name, pem, now))
        return name

    def revoke(self, key: str) -> None:
        """Let a key in no more."""
        with self._transaction() as db:
            db.execute("UPDATE participants SET revoked = ? WHERE key = ?", (time.time(), key))

    def bar(self, name: str) -> int:
        """Let every key of a participant in no more, and let unused kits of that name enrol nobody; how many keys it had.

        Raises:
            RequestError: nobody of that name is in.

        """
        with self._transaction() as db:
            mine = [each for each in self.participants() if each.name == name and each.revoked is None]
            if not mine:
                inside = (
                    ", ".join(sorted({each.name for each in self.participants() if each.revoked is None})) or "nobody"
                )
                raise RequestError(f"no participant {name!r} is in: there is {inside}")
            db.executemany(
                "UPDATE participants SET revoked = ? WHERE key = ?", [(time.time(), each.key) for each in mine]
            )
            db.execute("DELETE FROM invitations WHERE participant = ? AND used IS NULL", (name,))
        return len(mine)

    def is_admitted(self, key: str) -> bool:
        """Whether a key may come in at this moment."""
        return bool(self._rows("SELECT 1 FROM participants WHERE key = ? AND revoked IS NULL", key))

    def saw(self, key: str) -> None:
        """Remember that a participant was here."""
        with self._transaction() as db:
            db.execute("UPDATE participants SET seen = ? WHERE key = ?", (time.time(), key))

    def participants(self) -> list[Participant]:
        """Everybody who enrolled, the earliest first."""
        return [Participant(**row) for row in self._rows("SELECT * FROM participants ORDER BY admitted, key")]

    def invitations(self) -> list[tuple[str, float, float | None]]:
        """Who was invited: name, when it expires, when it was used."""
        rows = self._rows("SELECT participant, expires, used FROM invitations ORDER BY expires")
        return [(row["participant"], row["expires"], row["used"]) for row in rows]

    # Rounds

    def ask_round(self, settings: RoundSettings) -> Round:
        """Ask for a round; the running server begins it, and it keeps what arrived too late for the last one.

        Raises:
            RequestError: another round is not finished.

        """
        with self._transaction() as db:
            if (running := self.unfinished_round()) is not None:
                raise RequestError(
                    f"{running.id} is {running.status}: let it finish, or cancel it, before another begins"
                )
            count = db.execute("SELECT COUNT(*) FROM rounds").fetchone()[0]
            name = f"round-{count + 1:03d}"
            db.execute(
                "INSERT INTO rounds (id, status, settings, asked) VALUES (?, ?, ?, ?)",
                (name, ASKED, json.dumps(asdict(settings)), time.time()),
            )
        return self.round(name)

    def round(self, name: str) -> Round:
        """One round."""
        rows = self._rounds("SELECT * FROM rounds WHERE id = ?", name)
        if not rows:
            raise RequestError(f"there is no round {name!r}")
        return rows[0]

    def rounds(self) -> list[Round]:
        """All rounds, the earliest first."""
        return self._rounds("SELECT * FROM rounds ORDER BY asked, id")

    def unfinished_round(self) -> Round | None:
        """The round that a server has still to work on."""
        return next((each for each in self.rounds() if each.unfinished), None)

    def latest_published(self) -> Round | None:
        """The round whose model was published last."""
        return next((each for each in reversed(self.rounds()) if each.status == PUBLISHED), None)

    def advance(self, name: str, status: str, reason: str = "") -> None:
        """Move a round to its next status. A round that was cancelled or has ended stays so."""
        ended = None if status in UNFINISHED else time.time()
        marks = ", ".join("?" * len(UNFINISHED))
        with self._transaction() as db:
            db.execute(
                f"UPDATE rounds SET status = ?, reason = ?, ended = ? WHERE id = ? AND status IN ({marks})",  # noqa: S608 - only question marks
                (status, reason, ended, name, *UNFINISHED),
            )

    def note(self, name: str, text: str) -> None:
        """Tell whoever follows a round what happens."""
        with self._transaction() as db:
            db.execute("INSERT INTO notes (round, at, text) VALUES (?, ?, ?)", (name, time.time(), text))

    def notes(self, name: str, after: int = 0) -> list[tuple[int, float, str]]:
        """What was told of a round since note number `after`: number, time, text."""
        rows = self._rows("SELECT id, at, text FROM notes WHERE round = ? AND id > ? ORDER BY id", name, after)
        return [(row["id"], row["at"], row["text"]) for row in rows]

    def set_activity(self, name: str, key: str, activity: str, *, attempts: int = 0) -> None:
        """Say what a participant does in a round; `attempts` are added to those made."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO members VALUES (?, ?, ?, ?, ?) ON CONFLICT (round, key) DO UPDATE SET "
                "activity = excluded.activity, attempts = attempts + excluded.attempts, at = excluded.at",
                (name, key, activity, attempts, time.time()),
            )

    def members(self, name: str) -> list[Member]:
        """What everybody does in a round."""
        query = (
            "SELECT m.key, p.name, m.activity, m.attempts, m.at FROM members m JOIN participants p ON p.key = m.key "
            "WHERE m.round = ? ORDER BY p.name, m.key"
        )
        return [Member(**row) for row in self._rows(query, name)]

    # Uploads

    def add_upload(self, upload: Upload) -> Upload:
        """Journal an upload whose file is spooled, or whose refusal is final; its number is chosen here.

        Raises:
            RequestError: this participant has used that concept name in this round already.

        """
        with self._transaction() as db:
            try:
                number = db.execute(
                    "INSERT INTO uploads (round, key, participant, concept, digest, bytes, received, refused) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        upload.round,
                        upload.key,
                        upload.participant,
                        upload.concept,
                        upload.digest,
                        upload.bytes,
                        upload.received,
                        upload.refused,
                    ),
                ).lastrowid
            except sqlite3.IntegrityError as error:
                raise RequestError(
                    f"{upload.participant} has a concept {upload.concept} in {upload.round} already: "
                    "give this one another --concept name"
                ) from error
        return self._uploads("WHERE id = ?", number)[0]

    def uploads(self, name: str) -> list[Upload]:
        """Everything that arrived for a round, admitted or not."""
        return self._uploads("WHERE round = ?", name)

    def admitted(self, name: str) -> list[Upload]:
        """What a round fuses."""
        return self._uploads("WHERE round = ? AND refused IS NULL", name)

    def concepts(self) -> list[Upload]:
        """Every concept that is kept, of all rounds and of none."""
        return self._uploads("WHERE refused IS NULL")

    def refuse(self, upload: int, reason: str) -> None:
        """Take an upload that was admitted out of its round: it cannot be fused."""
        with self._transaction() as db:
            db.execute("UPDATE uploads SET refused = ? WHERE id = ?", (reason, upload))

    def adopt_late_uploads(self, name: str) -> list[Upload]:
        """Give a round what arrived too late for the one before, of participants who are still admitted.

        The newest of a name counts; what it replaces stays out.
        """
        adopted: dict[str, Upload] = {}
        with self._transaction() as db:
            for upload in self._uploads("WHERE round IS NULL AND refused IS NULL"):
                adopted[upload.token] = upload
            for upload in adopted.values():
                if self.is_admitted(upload.key):
                    db.execute("UPDATE OR IGNORE uploads SET round = ? WHERE id = ?", (name, upload.id))
            db.execute("UPDATE uploads SET refused = 'replaced by a later one' WHERE round IS NULL AND refused IS NULL")
        return self.admitted(name)

    def set_identity(self, upload: int, identity: Identity) -> None:
        """Keep the numbers with which a participant scored a candidate."""
        with self._transaction() as db:
            db.execute("UPDATE uploads SET identity = ? WHERE id = ?", (json.dumps(asdict(identity)), upload))

    def forget_identities(self, name: str) -> None:
        """Forget the scores of a candidate that is replaced."""
        with self._transaction() as db:
            db.execute("UPDATE uploads SET identity = NULL WHERE round = ?", (name,))

    def withdraw(self, wanted: str) -> list[Upload]:
        """Take a concept out of everything to come, by `<alice/cat>`, or by `<cat>` while only one participant has it.

        Raises:
            RequestError: nobody has it, or several do.

        """
        with self._transaction() as db:
            found = [upload for upload in self.concepts() if wanted in (upload.token, upload.concept)]
            tokens = sorted({upload.token for upload in found})
            if not found:
                kept = ", ".join(sorted({upload.token for upload in self.concepts()})) or "none"
                raise RequestError(f"there is no concept {wanted}: the concepts kept here are {kept}")
            if len(tokens) > 1:
                raise RequestError(f"several participants have a concept {wanted}: choose one of {', '.join(tokens)}")
            db.executemany("UPDATE uploads SET refused = 'withdrawn' WHERE id = ?", [(upload.id,) for upload in found])
        return found

    def was_withdrawn(self, key: str, digest: str) -> bool:
        """Whether this participant's concept with these contents was withdrawn before."""
        query = "SELECT 1 FROM uploads WHERE key = ? AND digest = ? AND refused = 'withdrawn'"
        return bool(self._rows(query, key, digest))

    def is_kept(self, digest: str) -> bool:
        """Whether any concept that is kept has these contents."""
        return bool(self._rows("SELECT 1 FROM uploads WHERE digest = ? AND refused IS NULL", digest))

    # sqlite

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block, or nothing of it. Blocks may be nested: the outermost commits."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise self._unusable(error) from error

    def _rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                raise self._unusable(error) from error

    def _rounds(self, query: str, *values: object) -> list[Round]:
        return [
            Round(**{**dict(row), "settings": RoundSettings(**json.loads(row["settings"]))})
            for row in self._rows(query, *values)
        ]

    def _uploads(self, where: str, *values: object) -> list[Upload]:
        rows = self._rows(f"SELECT * FROM uploads {where} ORDER BY id", *values)  # noqa: S608 - our own words
        return [
            Upload(**{**dict(row), "identity": Identity(**json.loads(row["identity"])) if row["identity"] else None})
            for row in rows
        ]

    def _unusable(self, error: Exception) -> StateError:
        return StateError(
            f"{self._path} cannot be used ({error}): is the disk full or read-only, or is it another user's? "
            "Nothing that was journalled before is lost"
        )


def _token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
