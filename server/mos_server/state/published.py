"""The models that a server hands out: a folder's name proves nothing, the journal decides.

A folder in `models/` may be a copy of another round's, a part of one, or the rest of a publication
that was cut short. A published model is the one whose manifest the journal knows by its digest.
The manifest has the digests of the other files, and whoever reads those checks them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mos_common.digests import digest_of_bytes
from mos_common.errors import StateError
from mos_common.own.names import own_digests, own_folder
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED, SCORING, Upload

MANIFEST = "manifest.json"


def published_model(state: State, journal: Journal, round_id: str) -> Path:
    """Return the folder of a round's published model.

    Raises:
        RequestError: there is no such round.
        StateError: the round is not published, or the folder is not its model.

    """
    round_, folder = journal.rounds.get(round_id), state.artefacts.model(round_id)
    if round_.status != PUBLISHED:
        raise StateError(f"{round_id} is {round_.status}, so it has no published model")
    state.artefacts.fetch_model(round_id, round_.manifest or "")
    data = _manifest_bytes(folder)
    # Releases before 0.2 did not journal the digest.
    same = digest_of_bytes(data) == round_.manifest if round_.manifest else is_model_of(state, journal, round_id)
    if not same:
        raise StateError(
            f"{folder} is not the model that {round_id} published: its manifest is another one. Restore the folder "
            "from a backup"
        )
    return folder


def published_own(state: State, journal: Journal, round_id: str, token: str) -> Path:
    """Return the folder of a concept's own changes beside a round's published model.

    Raises:
        RequestError: there is no such round.
        StateError: they were not published, or the concept was withdrawn since, or the folder is
            not what the model names.

    """
    model = published_model(state, journal, round_id)
    admitted = {upload.token for upload in journal.uploads.admitted(round_id) if upload.own}
    named = own_digests(_read(_manifest_bytes(model), model))
    if token not in admitted or token not in named:
        raise StateError(f"{round_id} has no own changes of {token}, or it was withdrawn")
    folder = own_folder(model, token)
    if digest_of_bytes(_manifest_bytes(folder)) != named[token]:
        raise StateError(f"{folder} is not what {round_id} names for {token}. Restore the folder from a backup")
    return folder


def candidate_to_score(state: State, journal: Journal, round_id: str) -> Path:
    """Return the folder of the candidate that participants score now.

    Raises:
        RequestError: there is no such round.
        StateError: the round is not scoring, or the folder is not its candidate, for example
            because a concept has been withdrawn since.

    """
    round_, folder = journal.rounds.get(round_id), state.artefacts.candidate(round_id)
    if round_.status != SCORING:
        raise StateError(f"{round_id} is {round_.status}, so no candidate is scored")
    manifest = _read(_manifest_bytes(folder), folder)
    if manifest.get("round") != round_id or _concepts(manifest, folder) != _named(journal.uploads.admitted(round_id)):
        raise StateError(f"{folder} is not made of the concepts that are in {round_id} now: it will be fused again")
    return folder


def is_model_of(state: State, journal: Journal, round_id: str) -> bool:
    """Return whether a model of a round's own concepts lies in the round's place.

    Raises:
        StateError: the store of models cannot be used.

    """
    folder = state.artefacts.model(round_id)
    data = state.artefacts.manifest(round_id)
    if data is None:
        return False
    try:
        manifest = _read(data, folder)
        own = _concepts(manifest, folder) <= _named(journal.uploads.of(round_id))
    except StateError:
        return False
    return own and manifest.get("round") == round_id


def _named(uploads: Iterable[Upload]) -> set[tuple[str, str]]:
    return {(upload.token, upload.digest) for upload in uploads}


def _manifest_bytes(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise StateError(
            f"{folder / MANIFEST} cannot be read ({error.strerror}): restore the folder from a backup"
        ) from error


def _read(data: bytes, folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise StateError(f"{folder / MANIFEST} is damaged ({error}): restore the folder from a backup") from error
    if not isinstance(manifest, dict):
        raise StateError(f"{folder / MANIFEST} is damaged (not an object): restore the folder from a backup")
    return manifest


def _concepts(manifest: dict[str, Any], folder: Path) -> set[tuple[str, str]]:
    try:
        return {(str(concept["token"]), str(concept["digest"])) for concept in manifest["concepts"]}
    except (KeyError, TypeError) as error:
        raise StateError(f"{folder / MANIFEST} does not list its concepts: restore the folder from a backup") from error
