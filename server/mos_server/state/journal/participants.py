"""Participants: invitations, and the keys that enrolled with them."""

from __future__ import annotations

import hashlib
import secrets
import time

from sqlalchemy import delete, insert, select, update

from mos_common.errors import RequestError, TrustError
from mos_server.state.journal.database import Database
from mos_server.state.journal.tables import invitations, participants
from mos_server.state.records import Participant


class Participants:
    """Invitations and participants. A name may have several keys, each with its own invitation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def invite(self, participant: str, *, valid_s: float) -> tuple[str, float]:
        """Return a one-time token and the time it expires. Only the token's digest is kept."""
        token, expires = secrets.token_urlsafe(32), time.time() + valid_s
        with self._database.writing() as db:
            db.execute(
                insert(invitations).values(token_hash=_token_hash(token), participant=participant, expires=expires)
            )
        return token, expires

    def enrol(self, token: str, key: str, pem: bytes) -> str:
        """Admit a key by its token and return the participant's name.

        The same key may repeat its own enrolment: the reply may have been lost.

        Raises:
            TrustError: the token is unknown, expired or used, or the key is revoked or belongs
                to another name.

        """
        now = time.time()
        invited_by = invitations.c.token_hash == _token_hash(token)
        with self._database.writing() as db:
            invitation = db.execute(select(invitations).where(invited_by)).mappings().one_or_none()
            member = db.execute(select(participants).where(participants.c.key == key)).mappings().one_or_none()
            if invitation is None:
                raise TrustError(
                    "this kit is not of this server, or its server was created again: ask the operator for a new one"
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
                    f"this key already belongs to {member['name']!r}: use a new --state folder for {name!r}"
                )
            db.execute(update(invitations).where(invited_by).values(used=now))
            db.execute(insert(participants).values(key=key, name=name, pem=pem, admitted=now))
        return name

    def revoke(self, key: str) -> None:
        """Revoke a key."""
        with self._database.writing() as db:
            db.execute(update(participants).where(participants.c.key == key).values(revoked=time.time()))

    def bar(self, name: str) -> int:
        """Revoke all keys of a participant, cancel its unused kits, and return the number of keys.

        Raises:
            RequestError: the participant is unknown, or has no admitted key.

        """
        with self._database.writing() as db:
            admitted = [each for each in self.all() if each.revoked is None]
            keys = [each.key for each in admitted if each.name == name]
            if not keys:
                known = ", ".join(sorted({each.name for each in admitted})) or "none"
                raise RequestError(f"unknown participant {name!r}; known: {known}")
            db.execute(update(participants).where(participants.c.key.in_(keys)).values(revoked=time.time()))
            db.execute(delete(invitations).where(invitations.c.participant == name, invitations.c.used.is_(None)))
        return len(keys)

    def is_admitted(self, key: str) -> bool:
        """Return whether a key is admitted now."""
        query = select(participants.c.key).where(participants.c.key == key, participants.c.revoked.is_(None))
        return bool(self._database.rows(query))

    def saw(self, key: str) -> None:
        """Record that a participant has just been seen."""
        with self._database.writing() as db:
            db.execute(update(participants).where(participants.c.key == key).values(seen=time.time()))

    def all(self) -> list[Participant]:
        """Return every enrolled key, earliest first."""
        query = select(participants).order_by(participants.c.admitted, participants.c.key)
        return [Participant(**row) for row in self._database.rows(query)]

    def invitations(self) -> list[tuple[str, float, float | None]]:
        """Return every invitation: the participant, when it expires, when it was used."""
        query = select(invitations).order_by(invitations.c.expires)
        return [(row["participant"], row["expires"], row["used"]) for row in self._database.rows(query)]


def _token_hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
