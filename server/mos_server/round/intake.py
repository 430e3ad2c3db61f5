"""Take an upload into a round: admit and spool it, refuse it or set it aside, and journal it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from mos_common.errors import BaseModelError, ConceptError, MosError, RequestError
from mos_server.round.attribution import CONCEPT, RECORDING, SCORES, Attribution
from mos_server.round.exchange import WithOwn
from mos_server.round.waiting import SCORES_SET_ASIDE, UNSCORABLE
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import Participant, Upload

if TYPE_CHECKING:
    from mos_common.base_model import Base
    from mos_common.concept import Concept

log = logging.getLogger(__name__)


def take_upload(
    state: State,
    journal: Journal,
    base: Base,
    participant: Participant,
    answer: bytes | WithOwn,
    round_id: str | None,
    *,
    reading: AbstractContextManager[None] | None = None,
) -> Upload:
    """Admit an upload to a round, or to the next one if `round_id` is None; return its record.

    The data is read within `reading`. Whatever is raised there is a reason to refuse the upload.

    Raises:
        StateError: the upload could not be written. Nothing is journalled then, and its owner will
            be asked again.

    """
    from mos_common.concept_file import content_digest

    name, digest = "?", ""
    data = answer.data if isinstance(answer, WithOwn) else answer
    try:
        with reading or nullcontext():
            concept = _read(data, base)
        name, digest = concept.name, content_digest(concept)
        if journal.uploads.was_withdrawn(participant.name, digest):
            raise RequestError(
                f"{name} was withdrawn, and a withdrawn concept stays out: tune it again to bring it back"
            )
        if round_id is not None:
            _check_new(journal.uploads.admitted(round_id), participant, name, digest)
    except (ConceptError, BaseModelError, RequestError) as error:
        return refuse_upload(journal, participant, str(error), round_id, concept=name, size=len(data))
    state.artefacts.put_concept(digest, data)
    agreed = isinstance(answer, WithOwn)
    return journal.uploads.add(_record(participant, round_id, concept=name, digest=digest, size=len(data), own=agreed))


def _read(data: bytes, base: Base) -> Concept:
    from mos_server.admission import admit

    try:
        return admit(data, base)
    except MosError:
        raise
    except Exception as error:  # MemoryError and RecursionError too
        log.warning("a concept file of %d bytes cannot be read", len(data), exc_info=True)
        raise ConceptError(f"the concept file cannot be read ({type(error).__name__})") from error


def refuse_upload(
    journal: Journal, participant: Participant, reason: str, round_id: str | None, *, concept: str = "?", size: int = 0
) -> Upload:
    """Journal an upload that cannot be used, and return its record."""
    return journal.uploads.add(_record(participant, round_id, concept=concept, size=size, refused=reason))


def set_aside(journal: Journal, round_id: str, attribution: Attribution) -> Iterator[tuple[Participant, str, str]]:
    """Set aside what the round's processes died of, as far as that is not done yet.

    Yield whose it is, their activity from now on, and a note.
    """
    people = {each.key: each for each in journal.participants.all()}
    answered = {upload.key for upload in journal.uploads.of(round_id)}
    for key in attribution.fatal(CONCEPT):
        if key in people and key not in answered:
            reason = "the round's process died while it read this answer: set aside, and not read again"
            refuse_upload(journal, people[key], reason, round_id)
            yield people[key], "set aside", f"{people[key].name}: {reason}"
    unscorable = {each.key for each in journal.rounds.members(round_id) if each.activity in UNSCORABLE}
    for key in attribution.fatal(SCORES):
        if key in people and key not in unscorable:
            reason = "the round's process died while it read these scores: set aside, and not asked for again"
            yield people[key], SCORES_SET_ASIDE, f"{people[key].name}: {reason}"
    digests = attribution.fatal(RECORDING)
    for upload in journal.uploads.admitted(round_id):
        if upload.digest in digests and upload.key in people:
            reason = "the round's process died twice while it recorded this concept: set aside"
            journal.uploads.refuse(upload.id, reason)
            yield people[upload.key], "set aside", f"{upload.token} is left out: {reason}"


def _check_new(others: list[Upload], participant: Participant, concept: str, digest: str) -> None:
    """Check that a concept is new in its round: tokens belong to names, whatever key sends them."""
    for other in others:
        if (other.participant, other.concept) == (participant.name, concept):
            keys = f", sent by key {other.key[:12]}; this is key {participant.key[:12]}"
            raise RequestError(
                f"{participant.name} already has a concept {concept} in this round"
                f"{keys if other.key != participant.key else ''}: give this one another --concept name"
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
    own: bool = False,
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
        own=own,
    )
