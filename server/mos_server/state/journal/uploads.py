"""Uploads: their round, their scores, and why a refused one is not fused."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import ColumnElement, RowMapping, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from mos_common.errors import RequestError
from mos_common.identity_scores import Identity
from mos_server.state.journal.database import Database
from mos_server.state.journal.participants import Participants
from mos_server.state.journal.tables import uploads
from mos_server.state.records import KeptConcept, Upload

_WITHDRAWN = "withdrawn"
_IS_KEPT = uploads.c.refused.is_(None)
_IS_LATE = uploads.c.round.is_(None) & _IS_KEPT


class Uploads:
    """Every upload of every round. One without a round arrived late and is for the next round."""

    def __init__(self, database: Database, participants: Participants) -> None:
        self._database = database
        self._participants = participants

    def add(self, upload: Upload) -> Upload:
        """Journal a kept or refused upload, and return it with its number.

        Raises:
            RequestError: this participant has already used that concept name in this round.

        """
        with self._database.writing() as db:
            try:
                with db.begin_nested():  # PostgreSQL ends a transaction in which a statement failed
                    added = db.execute(
                        insert(uploads).values(
                            round=upload.round,
                            key=upload.key,
                            participant=upload.participant,
                            concept=upload.concept,
                            digest=upload.digest,
                            bytes=upload.bytes,
                            received=upload.received,
                            refused=upload.refused,
                            own=int(upload.own),
                        )
                    ).inserted_primary_key
            except IntegrityError as error:
                raise RequestError(
                    f"{upload.participant} already has a concept {upload.concept} in {upload.round}: "
                    "give this one another --concept name"
                ) from error
        assert added is not None
        return self._where(uploads.c.id == added[0])[0]

    def of(self, round_id: str) -> list[Upload]:
        """Return everything that arrived for a round, admitted or not."""
        return self._where(uploads.c.round == round_id)

    def admitted(self, round_id: str) -> list[Upload]:
        """Return the uploads that a round fuses."""
        return self._where((uploads.c.round == round_id) & _IS_KEPT)

    def kept(self) -> list[Upload]:
        """Return every kept concept, with or without a round."""
        return self._where(_IS_KEPT)

    def concepts(self) -> list[KeptConcept]:
        """Return every kept concept once, however many rounds have it, the latest first."""
        columns = (uploads.c.participant, uploads.c.concept)
        query = select(
            *columns,
            func.count(uploads.c.round).label("rounds"),
            func.max(uploads.c.round).label("last_round"),
            func.max(uploads.c.received).label("received"),
            func.max(uploads.c.bytes).label("bytes"),
            func.max(uploads.c.own).label("own"),
        )
        latest = func.max(uploads.c.received).desc()
        found = self._database.rows(query.where(_IS_KEPT).group_by(*columns).order_by(latest, *columns))
        return [KeptConcept(**{**row, "own": bool(row["own"])}) for row in found]

    def everything(self) -> list[Upload]:
        """Return every upload of every round, refused or not."""
        return self._where(uploads.c.id.is_not(None))

    def tally(self) -> list[tuple[str | None, int, int]]:
        """Return, for each reason of a refusal and for None, how many uploads, and their bytes."""
        count, size = func.count().label("count"), func.sum(uploads.c.bytes).label("size")
        query = select(uploads.c.refused, count, size).group_by(uploads.c.refused)
        return [(row["refused"], int(row["count"]), int(row["size"])) for row in self._database.rows(query)]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return, for each round, how many uploads are in it and how many were refused."""
        fused = func.count().filter(_IS_KEPT).label("fused")
        query = select(uploads.c.round, fused, func.count().label("all")).group_by(uploads.c.round)
        found = self._database.rows(query.where(uploads.c.round.is_not(None)))
        return {row["round"]: (int(row["fused"]), int(row["all"] - row["fused"])) for row in found}

    def refuse(self, upload: int, reason: str) -> None:
        """Take an admitted upload out of its round because it cannot be fused."""
        with self._database.writing() as db:
            db.execute(update(uploads).where(uploads.c.id == upload).values(refused=reason))

    def adopt_late(self, round_id: str) -> list[Upload]:
        """Move uploads that were late for the last round into this one; return all of this round.

        Participants must still be admitted. Of uploads with the same name the newest is moved,
        unless the round already has that name; the others are refused.
        """
        with self._database.writing() as db:
            taken = {upload.token for upload in self.admitted(round_id)}
            newest = {upload.token: upload for upload in self._where(_IS_LATE)}
            for token, upload in newest.items():
                if token not in taken and self._participants.is_admitted(upload.key):
                    db.execute(update(uploads).where(uploads.c.id == upload.id).values(round=round_id))
            db.execute(update(uploads).where(_IS_LATE).values(refused="replaced by a later one"))
        return self.admitted(round_id)

    def set_identity(self, upload: int, identity: Identity) -> None:
        """Keep a participant's scores of a candidate."""
        with self._database.writing() as db:
            db.execute(update(uploads).where(uploads.c.id == upload).values(identity=asdict(identity)))

    def forget_identities(self, round_id: str) -> None:
        """Forget the scores of a candidate that is replaced."""
        with self._database.writing() as db:
            db.execute(update(uploads).where(uploads.c.round == round_id).values(identity=None))

    def withdraw(self, wanted: str) -> list[Upload]:
        """Withdraw a concept: `<alice/cat>`, or `<cat>` if only one participant has it.

        Raises:
            RequestError: the concept is unknown, or several participants have it.

        """
        with self._database.writing() as db:
            kept = self.kept()
            matches = [upload for upload in kept if wanted in (upload.token, upload.concept)]
            tokens = sorted({upload.token for upload in matches})
            if not matches:
                known = ", ".join(sorted({upload.token for upload in kept})) or "none"
                raise RequestError(f"unknown concept {wanted}; known: {known}")
            if len(tokens) > 1:
                raise RequestError(f"several participants have a concept {wanted}: choose one of {', '.join(tokens)}")
            numbers = [upload.id for upload in matches]
            db.execute(update(uploads).where(uploads.c.id.in_(numbers)).values(refused=_WITHDRAWN))
        return matches

    def was_withdrawn(self, participant: str, digest: str) -> bool:
        """Return whether this name's concept with these contents was withdrawn before.

        Any key may have sent it: concepts belong to names.
        """
        is_it = (
            (uploads.c.participant == participant) & (uploads.c.digest == digest) & (uploads.c.refused == _WITHDRAWN)
        )
        return bool(self._where(is_it))

    def is_kept(self, digest: str) -> bool:
        """Return whether any kept concept has these contents."""
        return bool(self._where((uploads.c.digest == digest) & _IS_KEPT))

    def may_be_erased(self, digest: str) -> bool:
        """Return whether nothing is known of a concept but, if at all, that it was withdrawn."""
        return all(upload.refused == _WITHDRAWN for upload in self._where(uploads.c.digest == digest))

    def _where(self, condition: ColumnElement[bool]) -> list[Upload]:
        query = select(uploads).where(condition).order_by(uploads.c.id)
        return [_upload(row) for row in self._database.rows(query)]


def _upload(row: RowMapping) -> Upload:
    identity = row["identity"]
    return Upload(**{**row, "own": bool(row["own"]), "identity": None if identity is None else Identity(**identity)})
