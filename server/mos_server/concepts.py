"""The spool of admitted uploads: one file for each, by content digest, until somebody withdraws it."""

from __future__ import annotations

from pathlib import Path

from mos_common.errors import StateError
from mos_common.files import could_not_write, write_atomically
from mos_server.records import Upload
from mos_server.state import State
from mos_server.store import Store


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
