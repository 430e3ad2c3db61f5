"""The spool of admitted uploads: one file for each, by content digest, until somebody withdraws it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mos_common.errors import RequestError, StateError
from mos_common.files import could_not_write, write_atomically
from mos_server.state.folder import State
from mos_server.state.journal import Store
from mos_server.state.records import Upload

if TYPE_CHECKING:
    from mos_common.fused_model import NamedConcept


def spool_path(state: State, digest: str) -> Path:
    """Where the concept with these contents is."""
    return state.concepts / f"{digest}.safetensors"


def spool(state: State, digest: str, data: bytes) -> None:
    """Keep an upload; it survives a crash once this returns."""
    write_atomically(spool_path(state, digest), data, mode=0o600)


def read_spooled(state: State, digest: str) -> bytes:
    """The bytes of a kept upload."""
    path = spool_path(state, digest)
    try:
        return path.read_bytes()
    except OSError as error:
        raise StateError(
            f"{path} cannot be read ({error.strerror}): restore it from a backup, or withdraw it"
        ) from error


def kept_uploads(store: Store, round_id: str | None = None, only: Sequence[str] = ()) -> list[Upload]:
    """What is kept of one round, or the newest of each token of all rounds.

    `only` chooses among them, by `<alice/cat>`, `alice/cat`, or `cat` while one participant has it.

    Raises:
        RequestError: no such round, a chosen one is not kept, or several participants have it.

    """
    kept = store.concepts() if round_id is None else store.admitted(store.round(round_id).id)
    newest = {upload.token: upload for upload in sorted(kept, key=lambda upload: upload.received)}
    if not only:
        return list(newest.values())
    chosen = {}
    for wanted in only:
        name = wanted.strip().strip("<>")
        found = [token for token in newest if name in (token[1:-1], token[1:-1].rpartition("/")[2])]
        if len(found) != 1:
            problem = f"could be any of {', '.join(sorted(found))}" if found else "is not kept"
            raise RequestError(f"concept {wanted} {problem}; there is {', '.join(sorted(newest)) or 'none'}")
        chosen[found[0]] = newest[found[0]]
    return list(chosen.values())


def named_concepts(state: State, uploads: Sequence[Upload]) -> list[NamedConcept]:
    """Kept uploads as fusion takes them."""
    from mos_common.concept_file import concept_from_bytes
    from mos_common.fused_model import NamedConcept

    return [
        NamedConcept(upload.participant, concept_from_bytes(read_spooled(state, upload.digest))) for upload in uploads
    ]


def withdraw(state: State, store: Store, wanted: str) -> list[Upload]:
    """Take a concept out of everything to come and erase it here: its file and its second moments.

    Models that were published with it stay as they are, since a published model is never changed.
    """
    withdrawn = store.withdraw(wanted)
    for digest in {upload.digest for upload in withdrawn}:
        if store.is_kept(digest):
            continue  # another participant has brought the same contents
        try:
            for path in [spool_path(state, digest), *state.moments.rglob(f"*{digest}*")]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise could_not_write(state.concepts, error) from error
    return withdrawn
