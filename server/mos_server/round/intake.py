"""Take an upload into a round: admit and spool it, or refuse it; journal it either way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mos_common.errors import BaseModelError, ConceptError, RequestError
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import Participant, Upload

if TYPE_CHECKING:
    from mos_common.base_model import Base


def take_upload(
    state: State, journal: Journal, base: Base, participant: Participant, data: bytes, round_id: str | None
) -> Upload:
    """Admit an upload to a round, or to the next one if `round_id` is None; return its record.

    Raises:
        StateError: the upload could not be written. Nothing is journalled then, and its owner will
            be asked again.

    """
    from mos_common.concept_file import content_digest
    from mos_server.admission import admit

    name, digest = "?", ""
    try:
        concept = admit(data, base)
        name, digest = concept.name, content_digest(concept)
        if journal.uploads.was_withdrawn(participant.key, digest):
            raise RequestError(
                f"{name} was withdrawn, and a withdrawn concept stays out: tune it again to bring it back"
            )
        if round_id is not None:
            _check_new(journal.uploads.admitted(round_id), participant.name, name, digest)
    except (ConceptError, BaseModelError, RequestError) as error:
        return refuse_upload(journal, participant, str(error), round_id, concept=name, size=len(data))
    state.artefacts.put_concept(digest, data)
    return journal.uploads.add(_record(participant, round_id, concept=name, digest=digest, size=len(data)))


def refuse_upload(
    journal: Journal, participant: Participant, reason: str, round_id: str | None, *, concept: str = "?", size: int = 0
) -> Upload:
    """Journal an upload that cannot be used, and return its record."""
    return journal.uploads.add(_record(participant, round_id, concept=concept, size=size, refused=reason))


def _check_new(others: list[Upload], participant: str, concept: str, digest: str) -> None:
    for other in others:
        if (other.participant, other.concept) == (participant, concept):
            raise RequestError(
                f"{participant} already has a concept {concept} in this round: give this one another --concept name"
            )
        if other.digest == digest:
            raise RequestError(f"{other.token} has the same contents: a concept counts once in a round")


def _record(
    participant: Participant,
    round_id: str | None,
    *,
    concept: str,
    size: int,
    digest: str = "",
    refused: str | None = None,
) -> Upload:
    return Upload(
        id=0,
        round=round_id,
        key=participant.key,
        participant=participant.name,
        concept=concept,
        digest=digest,
        bytes=size,
        received=time.time(),
        refused=refused,
        identity=None,
    )
