"""From the admitted uploads of a round to its published model: fuse, compare, publish or hold back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mos_common.errors import FusionError
from mos_server.state.concepts import named_concepts
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import Round, Upload

if TYPE_CHECKING:
    from mos_common.base_model import Base


def fuse_candidate(state: State, journal: Journal, round_id: str, base: Base, progress: Callable[[str], None]) -> Path:
    """Fuse what is admitted to a round into its candidate; one that was there is replaced, and its scores are forgotten.

    What cannot be fused is refused, with the reason, and the rest is fused.

    Raises:
        FusionError: nothing is left to fuse.

    """
    from mos_server.fusion.fuse import fuse
    from mos_server.fusion.settings import FusionSettings
    from mos_server.models.publish import write_fused

    uploads = journal.uploads.admitted(round_id)
    if not uploads:
        raise FusionError("every concept of this round was withdrawn: nothing is left to fuse")
    candidate = state.artefacts.candidate(round_id)
    journal.uploads.forget_identities(round_id)
    shutil.rmtree(candidate, ignore_errors=True)
    fused = fuse(
        base, named_concepts(state, uploads), FusionSettings(), moments_dir=state.artefacts.moments, progress=progress
    )
    reasons = {excluded.token: excluded.reason for excluded in fused.manifest.excluded}
    for upload in uploads:
        if upload.token in reasons:
            journal.uploads.refuse(upload.id, f"it cannot be fused: {reasons[upload.token]}")
    write_fused(fused, candidate, round=round_id)
    return candidate


def is_current(candidate: Path, uploads: list[Upload]) -> bool:
    """Whether a candidate is there and made of exactly these uploads; concepts may have been withdrawn since."""
    try:
        manifest = json.loads((candidate / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    fused = {(concept["token"], concept["digest"]) for concept in manifest["concepts"]}
    return fused == {(upload.token, upload.digest) for upload in uploads}


def reasons_to_hold_back(round_: Round, uploads: list[Upload]) -> list[str]:
    """Why a candidate may not be published: concepts that do not reach the identity that the operator asked for."""
    least = round_.settings.min_identity
    if least is None:
        return []
    reasons = []
    for upload in uploads:
        if upload.identity is None:
            reasons.append(f"{upload.token} was not scored")
        elif upload.identity["fused"] < least:
            reasons.append(f"{upload.token} has identity {upload.identity['fused']:.3f}")
    return reasons


def lost_identity(round_: Round, uploads: list[Upload]) -> dict[str, float]:
    """By token how much identity fusion took from each concept that lost more than the operator finds usual."""
    scored = [(upload.token, upload.identity) for upload in uploads if upload.identity is not None]
    losses = {token: identity["single"] - identity["fused"] for token, identity in scored}
    return {token: loss for token, loss in losses.items() if loss > round_.settings.flag_loss}


def publish(state: State, round_: Round, uploads: list[Upload]) -> Path:
    """Sign a scored candidate and make it the round's model; once that is done, do nothing. Its folder."""
    from mos_common.fused_model import Identity
    from mos_server.models.publish import publish_candidate

    published, candidate = state.artefacts.model(round_.id), state.artefacts.candidate(round_.id)
    if not published.exists():
        identity = {upload.token: Identity(**upload.identity) for upload in uploads if upload.identity is not None}
        flagged = lost_identity(round_, uploads).keys()
        publish_candidate(candidate, published, identity, flagged, state.pki.signing_key())
    shutil.rmtree(candidate, ignore_errors=True)
    return published
