"""Concepts that are kept: which ones a fusion takes, and how one is withdrawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mos_common.errors import RequestError
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import Upload

if TYPE_CHECKING:
    from mos_common.fused_model import NamedConcept


def kept_uploads(journal: Journal, round_id: str | None = None, only: Sequence[str] = ()) -> list[Upload]:
    """Return what is kept of one round, or the newest of each token of all rounds.

    `only` chooses among them, by `<alice/cat>`, `alice/cat`, or `cat` while one participant has it.

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
        found = [token for token in newest if name in (token[1:-1], token[1:-1].rpartition("/")[2])]
        if len(found) != 1:
            if found:
                raise RequestError(f"concept {wanted} could be any of {', '.join(sorted(found))}: name one of them")
            raise RequestError(f"unknown concept {wanted}; known: {', '.join(sorted(newest)) or 'none'}")
        chosen[found[0]] = newest[found[0]]
    return list(chosen.values())


def named_concepts(state: State, uploads: Sequence[Upload]) -> list[NamedConcept]:
    """Return kept uploads as fusion takes them."""
    from mos_common.concept_file import concept_from_bytes
    from mos_common.fused_model import NamedConcept

    return [
        NamedConcept(upload.participant, concept_from_bytes(state.artefacts.read_concept(upload.digest)))
        for upload in uploads
    ]


def withdraw(state: State, journal: Journal, wanted: str) -> list[Upload]:
    """Withdraw a concept from everything to come, and erase its file and its second moments.

    Models that were published with it stay as they are, since a published model is never changed.

    Raises:
        RequestError: the concept is unknown, or several participants have it.

    """
    withdrawn = journal.uploads.withdraw(wanted)
    for digest in {upload.digest for upload in withdrawn}:
        if not journal.uploads.is_kept(digest):  # else another participant has brought the same contents
            state.artefacts.delete_concept(digest)
    return withdrawn
