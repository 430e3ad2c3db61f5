"""The audit trail: every change of the journal, and what else was done, in one chain of lines.

A change and its line are one transaction. Lines are appended to `audit.jsonl` after the commit, or
by whoever commits next if the process was killed in between.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from mos_common.errors import StateError, TrustError
from mos_common.files import canonical_json, could_not_write
from mos_common.outage import Outage
from mos_server.state.audit import SEAL, Row, append_rows, line_time, make_row, problems, seal_of
from mos_server.state.journal.audit_triggers import install_triggers
from mos_server.state.journal.database import Database
from mos_server.state.journal.tables import audit, audit_events, audit_seals

log = logging.getLogger(__name__)

_ONCE_AT_MOST = 256
_SEALED = ("key", "concept", "digest")
_LINES = select(audit.c.line).order_by(audit.c.sequence)


class Audit:
    """The audit of one state folder, in the journal and in `file`."""

    def __init__(self, database: Database, file: Path) -> None:
        self._database, self._file = database, file
        self._said: set[tuple[str, str]] = set()
        self._unwritable = Outage(lambda line: log.warning("%s", line))
        install_triggers(database)
        database.before_commit, database.after_commit = self._settle, self._write_file
        self._write_file()

    def add(
        self,
        what: str,
        *,
        person: str | None = None,
        sealed: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a line about something that is no change of the journal.

        `person` and the texts in `sealed` may name people and become seals; `details` stay as they
        are, and must name nobody.
        """
        with self._database.writing() as db:
            self._settle(db)
            hidden = {name: self._seal(db, person or "", value) for name, value in (sealed or {}).items()}
            self._append(db, what, person, {**(details or {}), **hidden})

    def add_once(self, what: str, reason: str) -> None:
        """Add a line about something that strangers can cause as often as they like.

        Each reason has one line while a process runs, and there are at most `_ONCE_AT_MOST`.
        """
        if (what, reason) not in self._said and len(self._said) < _ONCE_AT_MOST:
            self._said.add((what, reason))
            self.add(what, sealed={"reason": reason})

    def rows(self) -> list[Row]:
        """Return every line, earliest first."""
        query = select(audit).order_by(audit.c.sequence)
        return [_row(row) for row in self._database.rows(query)]

    def states_of(self, round_id: str) -> list[tuple[str, float]]:
        """Return the states that a round has entered, and when (s since the epoch), in order."""
        marks = ('"what":"round ', canonical_json({"round": round_id}).decode()[1:-1])
        matches = (audit.c.line.contains(mark, autoescape=True) for mark in marks)
        entries = [json.loads(row["line"]) for row in self._database.rows(_LINES.where(*matches))]
        return [(each["what"].removeprefix("round "), _seconds(each["at"])) for each in entries]

    def last(self, count: int) -> list[dict[str, Any]]:
        """Return the entries of the newest lines, newest first, as `entries` does."""
        newest = select(audit).order_by(audit.c.sequence.desc()).limit(count)
        rows = [_row(row) for row in self._database.rows(newest)]
        return list(self._entries(rows))

    def check(self) -> Row | None:
        """Check file, journal and seals against each other, and return the last line, if any.

        Raises:
            TrustError: something does not hold; the message says what.
            StateError: the file cannot be read.

        """
        rows = self.rows()
        try:
            found = problems(self._file, rows)
        except OSError as error:
            raise StateError(f"{self._file} cannot be read ({error.strerror}): run as its owner") from error
        for row in self._database.rows(select(audit_seals)):
            if seal_of(row["value"], row["salt"]) != row["seal"]:
                found.append(f"the seal {row['seal']} stands for another value than when it was made")
        if found:
            raise TrustError(
                f"{self._file} does not hold: {'; '.join(found[:5])}. Compare it with a backup: what comes before "
                "the first broken line is as it was written"
            )
        return rows[-1] if rows else None

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of every line, with the value in place of each seal that is known."""
        yield from self._entries(self.rows())

    def _entries(self, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
        values = {row["seal"]: row["value"] for row in self._database.rows(select(audit_seals))}
        for row in rows:
            entry = json.loads(row.line)
            details = {name: _opened(value, values) for name, value in entry["details"].items()}
            who = {"who": _opened(entry["who"], values)} if "who" in entry else {}
            yield {**entry, **who, "details": details}

    def forget(self, person: str, mentions: Callable[[str], bool]) -> int:
        """Delete what the seals of a person stand for, and of every text that `mentions` them.

        Return the number of seals that nobody can resolve any more.
        """
        with self._database.writing() as db:
            self._settle(db)
            seals = db.execute(select(audit_seals)).mappings().all()
            gone = [row["seal"] for row in seals if row["person"] == person or mentions(row["value"])]
            for seal in gone:
                db.execute(delete(audit_seals).where(audit_seals.c.seal == seal))
        return len(gone)

    def _settle(self, db: Connection) -> None:
        """Turn the events of a transaction into lines, before it is committed."""
        events = db.execute(select(audit_events).order_by(audit_events.c.id)).mappings().all()
        for event in events:
            person = event["person"]
            details = {name: event[name] for name in ("round", "bytes") if event[name] is not None}
            for name in _SEALED:
                if event[name] is not None:
                    details[name] = self._seal(db, person or "", event[name])
            if event["text"] is not None:
                name = "settings" if event["what"] == "round asked" else "reason"
                details[name] = self._seal(db, person or "", event["text"])
            self._append(db, event["what"], person, details)
        if events:
            db.execute(delete(audit_events))

    def _append(self, db: Connection, what: str, person: str | None, details: Mapping[str, Any]) -> None:
        last = db.execute(select(audit).order_by(audit.c.sequence.desc()).limit(1)).mappings().one_or_none()
        at = line_time(dt.datetime.now(dt.UTC))
        who = None if person is None else self._seal(db, person, person)
        row = make_row(None if last is None else _row(last), at, what, who, details)
        db.execute(insert(audit).values(sequence=row.sequence, line=row.line, hash=row.hash))

    def _seal(self, db: Connection, person: str, value: str) -> str:
        """Return the seal of a person's value, which is the same every time."""
        is_it = (audit_seals.c.person == person) & (audit_seals.c.value == value)
        known = db.execute(select(audit_seals.c.seal).where(is_it)).scalars().first()
        if known is not None:
            return str(known)
        salt = secrets.token_bytes(32)
        seal = seal_of(value, salt)
        db.execute(insert(audit_seals).values(seal=seal, person=person, value=value, salt=salt))
        return seal

    def _write_file(self) -> None:
        """Append to the file what it does not have; the change itself is committed already."""
        missing = select(audit).where(audit.c.in_file == 0).order_by(audit.c.sequence)
        try:
            if not self._database.rows(missing):
                return
            with self._database.transaction() as db:  # no other process appends meanwhile
                rows = [_row(row) for row in db.execute(missing).mappings()]
                try:
                    append_rows(self._file, rows)
                except OSError as error:
                    raise could_not_write(self._file, error) from error
                db.execute(update(audit).where(audit.c.in_file == 0).values(in_file=1))
            self._unwritable.over(f"{self._file} has every line again")
        except StateError as error:
            self._unwritable.report(f"the audit's newest lines are in the journal alone, until the next one: {error}")


def _opened(value: Any, values: Mapping[str, str]) -> Any:
    return values.get(value, value) if isinstance(value, str) and SEAL.fullmatch(value) else value


def _seconds(at: str) -> float:
    return dt.datetime.fromisoformat(at).timestamp()


def _row(row: RowMapping) -> Row:
    return Row(row["sequence"], row["line"], row["hash"], bool(row["in_file"]))
