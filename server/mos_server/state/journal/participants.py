"""Participants: invitations, and the keys that enrolled with them."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from mos_common.errors import RequestError, TrustError
from mos_server.state.journal.database import Database
from mos_server.state.journal.tables import invitations, participants
from mos_server.state.records import Participant

_SHORTEST_KEY = 8


@dataclass(frozen=True)
class Barred:
    """How many keys were revoked, how many the name has left, how many of its kits were unused."""

    keys: int
    left: int
    kits: int


class Participants:
    """Invitations and participants. A name may have several keys, each with its own invitation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def invite(self, participant: str, *, valid_s: float, again: bool = False) -> tuple[str, float]:
        """Return a one-time token and the time it expires. Only the token's digest is kept.

        Raises:
            RequestError: the name was barred, and `again` does not say that it may come back; or
                it says so of a name that was not barred.

        """
        token, expires = secrets.token_urlsafe(32), time.time() + valid_s
        with self._database.writing() as db:
            barred = self.barred_since(participant)
            if barred is not None and not again:
                raise RequestError(
                    f"{participant} was barred on {time.strftime('%Y-%m-%d %H:%M', time.localtime(barred))}: a new kit "
                    "would let the name back in; say --again if that is meant, or choose another name"
                )
            if barred is None and again:
                raise RequestError(f"{participant} is not barred: leave --again out")
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
            if member is not None and member["revoked"] is not None:
                raise TrustError(
                    f"this key of {member['name']!r} was barred by the operator: a new kit needs a new --state folder"
                )
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

    def bar(self, name: str, key: str | None = None) -> Barred:
        """Revoke all keys of a participant and cancel its unused kits, or revoke one key alone.

        `key` is the beginning of its digest, at least 8 characters.

        Raises:
            RequestError: the participant is unknown or barred already, or no key of it begins so,
                or several do.

        """
        with self._database.writing() as db:
            everyone, now = self.all(), time.time()
            admitted = [each.key for each in everyone if each.name == name and each.revoked is None]
            unused = (invitations.c.participant == name) & invitations.c.used.is_(None)
            kits = len(db.execute(select(invitations).where(unused)).all())
            if not admitted and (key is not None or not kits):
                raise RequestError(self._nobody(name, everyone))
            keys = admitted if key is None else [_one_of(admitted, key, name)]
            db.execute(update(participants).where(participants.c.key.in_(keys)).values(revoked=now))
            if key is None:
                db.execute(delete(invitations).where(unused))
        return Barred(len(keys), len(admitted) - len(keys), kits)

    def barred_since(self, name: str) -> float | None:
        """Return when a name lost its last key; None while it has one, or never had any."""
        query = select(participants.c.revoked).where(participants.c.name == name)
        keys = [row["revoked"] for row in self._database.rows(query)]
        return max(filter(None, keys)) if keys and all(keys) else None

    def _nobody(self, name: str, everyone: list[Participant]) -> str:
        if self.barred_since(name) is not None:
            return f"{name} is barred already: all its keys are revoked, and no kit of it is unused"
        known = ", ".join(sorted({each.name for each in everyone if each.revoked is None})) or "none"
        return f"unknown participant {name!r}; known: {known}"

    def name_of(self, key: str) -> str | None:
        """Return whose key this is, admitted or not; None: nobody's."""
        rows = self._database.rows(select(participants.c.name).where(participants.c.key == key))
        return str(rows[0]["name"]) if rows else None

    def is_admitted(self, key: str) -> bool:
        """Return whether a key is admitted now."""
        query = select(participants.c.key).where(participants.c.key == key, participants.c.revoked.is_(None))
        return bool(self._database.rows(query))

    def saw(self, key: str, release: str | None = None) -> None:
        """Record that a participant has just been seen, and its release if it said one."""
        values: dict[str, float | str] = {"seen": time.time()} | ({"release": release} if release else {})
        with self._database.writing() as db:
            db.execute(update(participants).where(participants.c.key == key).values(values))

    def runs(self, key: str, release: str) -> None:
        """Record the release that a participant runs."""
        with self._database.writing() as db:
            db.execute(update(participants).where(participants.c.key == key).values(release=release))

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


def _one_of(keys: list[str], beginning: str, name: str) -> str:
    """Return the one key that begins so."""
    matches = [key for key in keys if key.startswith(beginning.lower())]
    if len(matches) != 1 or len(beginning) < _SHORTEST_KEY:
        listed = ", ".join(key[:12] for key in keys)
        raise RequestError(
            f"--key {beginning[:80]!r} names {len(matches) or 'no'} key{'' if len(matches) == 1 else 's'} of {name}: give "
            f"at least the first {_SHORTEST_KEY} characters of one of {listed}"
        )
    return matches[0]
