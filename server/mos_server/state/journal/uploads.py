"""Uploads: what arrived, for which round, and why it is not fused where it is not."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import ColumnElement, RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from mos_common.errors import RequestError
from mos_common.identity_scores import Identity
from mos_server.state.journal.database import Database
from mos_server.state.journal.participants import Participants
from mos_server.state.journal.tables import uploads
from mos_server.state.records import Upload

_WITHDRAWN = "withdrawn"
_IS_KEPT = uploads.c.refused.is_(None)
_IS_LATE = uploads.c.round.is_(None) & _IS_KEPT


class Uploads:
    """Every upload of every round. One without a round arrived too late and is for the next."""

    def __init__(self, database: Database, participants: Participants) -> None:
        self._database = database
        self._participants = participants

    def add(self, upload: Upload) -> Upload:
        """Journal an upload that is kept or refused, and return it with the number it was given.

        Raises:
            RequestError: this participant has used that concept name in this round already.

        """
        with self._database.writing() as db:
            try:
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
                    )
                ).inserted_primary_key
            except IntegrityError as error:
                raise RequestError(
                    f"{upload.participant} has a concept {upload.concept} in {upload.round} already: "
                    "give this one another --concept name"
                ) from error
        assert added is not None
        return self._where(uploads.c.id == added[0])[0]

    def of(self, round_id: str) -> list[Upload]:
        """Return everything that arrived for a round, admitted or not."""
        return self._where(uploads.c.round == round_id)

    def admitted(self, round_id: str) -> list[Upload]:
        """Return what a round fuses."""
        return self._where((uploads.c.round == round_id) & _IS_KEPT)

    def kept(self) -> list[Upload]:
        """Return every concept that is kept, of all rounds and of none."""
        return self._where(_IS_KEPT)

    def refuse(self, upload: int, reason: str) -> None:
        """Take an upload that was admitted out of its round: it cannot be fused."""
        with self._database.writing() as db:
            db.execute(update(uploads).where(uploads.c.id == upload).values(refused=reason))

    def adopt_late(self, round_id: str) -> list[Upload]:
        """Move uploads that were too late for the last round into this one, and return all it has.

        Participants must still be admitted. Of uploads with one name the newest is moved, unless
        the round has that name already; the others are refused.
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
        """Keep the numbers with which a participant scored a candidate."""
        with self._database.writing() as db:
            db.execute(update(uploads).where(uploads.c.id == upload).values(identity=asdict(identity)))

    def forget_identities(self, round_id: str) -> None:
        """Forget the scores of a candidate that is replaced."""
        with self._database.writing() as db:
            db.execute(update(uploads).where(uploads.c.round == round_id).values(identity=None))

    def withdraw(self, wanted: str) -> list[Upload]:
        """Withdraw a concept: `<alice/cat>`, or `<cat>` while only one participant has it.

        Raises:
            RequestError: the concept is unknown, or several participants have it.

        """
        with self._database.writing() as db:
            kept = self.kept()
            found = [upload for upload in kept if wanted in (upload.token, upload.concept)]
            tokens = sorted({upload.token for upload in found})
            if not found:
                known = ", ".join(sorted({upload.token for upload in kept})) or "none"
                raise RequestError(f"unknown concept {wanted}; known: {known}")
            if len(tokens) > 1:
                raise RequestError(f"several participants have a concept {wanted}: choose one of {', '.join(tokens)}")
            numbers = [upload.id for upload in found]
            db.execute(update(uploads).where(uploads.c.id.in_(numbers)).values(refused=_WITHDRAWN))
        return found

    def was_withdrawn(self, key: str, digest: str) -> bool:
        """Return whether this participant's concept with these contents was withdrawn before."""
        is_it = (uploads.c.key == key) & (uploads.c.digest == digest) & (uploads.c.refused == _WITHDRAWN)
        return bool(self._where(is_it))

    def is_kept(self, digest: str) -> bool:
        """Return whether any concept that is kept has these contents."""
        return bool(self._where((uploads.c.digest == digest) & _IS_KEPT))

    def _where(self, condition: ColumnElement[bool]) -> list[Upload]:
        query = select(uploads).where(condition).order_by(uploads.c.id)
        return [_upload(row) for row in self._database.rows(query)]


def _upload(row: RowMapping) -> Upload:
    identity = row["identity"]
    return Upload(**{**row, "identity": None if identity is None else Identity(**identity)})
