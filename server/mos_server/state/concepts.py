"""Kept concepts: choose those of a fusion, and withdraw one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mos_common.errors import ConceptError, RequestError, StateError
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import Upload

if TYPE_CHECKING:
    from mos_common.fused_model import NamedConcept


def kept_uploads(journal: Journal, round_id: str | None = None, only: Sequence[str] = ()) -> list[Upload]:
    """Return the kept uploads of one round, or of all rounds the newest of each token.

    `only` chooses among them: `<alice/cat>`, `alice/cat`, or `cat` if one participant has it.

    Raises:
        RequestError: the round or a concept is unknown, or several participants have the concept.

    """
    kept = journal.uploads.kept() if round_id is None else journal.uploads.admitted(journal.rounds.get(round_id).id)
    newest = {upload.token: upload for upload in sorted(kept, key=lambda upload: upload.received)}
    if not only:
        return list(newest.values())
    chosen = {}
    for wanted in only:
        name = wanted.strip().strip("<>")
        matches = [token for token in newest if name in (token[1:-1], token[1:-1].rpartition("/")[2])]
        if len(matches) != 1:
            if matches:
                raise RequestError(f"concept {wanted} could be any of {', '.join(sorted(matches))}: name one of them")
            raise RequestError(f"unknown concept {wanted}; known: {', '.join(sorted(newest)) or 'none'}")
        chosen[matches[0]] = newest[matches[0]]
    return list(chosen.values())


def named_concepts(state: State, uploads: Sequence[Upload]) -> list[NamedConcept]:
    """Return kept uploads in the form that fusion takes.

    Raises:
        StateError: a file cannot be read, or is not the one that was admitted.

    """
    from mos_common.concept_file import concept_from_bytes, content_digest
    from mos_common.fused_model import NamedConcept

    named = []
    for upload in uploads:
        data = state.artefacts.read_concept(upload.digest)
        try:
            concept = concept_from_bytes(data)
            same = (concept.name, content_digest(concept)) == (upload.concept, upload.digest)
        except ConceptError:
            same = False
        if not same:
            raise StateError(
                f"{state.artefacts.place_of_concept(upload.digest)} is not the concept that was admitted as "
                f"{upload.token}: restore it from a backup, or withdraw it"
            )
        named.append(NamedConcept(upload.participant, concept))
    return named


def withdraw(state: State, journal: Journal, wanted: str) -> list[Upload]:
    """Withdraw a concept from all future fusions, and erase its file and its second moments.

    Models that were published with it stay as they are: a published model is never changed. Its own
    changes beside them are erased.

    Raises:
        RequestError: the concept is unknown, or several participants have it.

    """
    withdrawn = journal.uploads.withdraw(wanted)
    for digest in {upload.digest for upload in withdrawn}:
        if not journal.uploads.is_kept(digest):  # otherwise another participant has the same contents
            state.artefacts.delete_concept(digest)
    for upload in withdrawn:
        if upload.round is not None:
            state.artefacts.remove_own(upload.round, [upload.token])
    return withdrawn
