"""Turn the admitted uploads of a round into its model: fuse, compare, publish or hold back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mos_common.errors import FusionError
from mos_server.state.concepts import named_concepts
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import Round, Upload, describe_fusion

if TYPE_CHECKING:
    from mos_common.base_model import Base


def fuse_candidate(state: State, journal: Journal, round_id: str, base: Base, progress: Callable[[str], None]) -> Path:
    """Fuse the concepts admitted to a round, with the round's settings, into its candidate.

    An earlier candidate is replaced and its scores are forgotten. A concept that cannot be fused is
    refused with the reason, and the others are fused.

    Raises:
        FusionError: nothing is left to fuse.
        RequestError: a setting of the round is unknown to this version.

    """
    from mos_server.fusion.cluster import recorder_for
    from mos_server.fusion.fuse import fuse
    from mos_server.fusion.settings import FusionSettings
    from mos_server.models.publish import write_fused

    uploads = journal.uploads.admitted(round_id)
    if not uploads:
        raise FusionError("every concept of this round was withdrawn: nothing is left to fuse")
    fusion = journal.rounds.get(round_id).settings.fusion
    round_settings = FusionSettings.from_json(fusion)
    settings = round_settings.for_tokens({upload.token for upload in uploads})
    progress(f"settings of fusion: {describe_fusion(fusion)}")
    for token in sorted(round_settings.weights.keys() - settings.weights.keys()):
        progress(f"{token} is not in this round: its weight is not used")
    candidate = state.artefacts.candidate(round_id)
    journal.uploads.forget_identities(round_id)
    shutil.rmtree(candidate, ignore_errors=True)
    with recorder_for(settings.workers, base) as recorder:
        fused = fuse(
            base,
            named_concepts(state, uploads),
            settings.of_method,
            weights=settings.weights,
            moments_dir=state.artefacts.moments,
            recorder=recorder,
            progress=progress,
        )
    reasons = {excluded.token: excluded.reason for excluded in fused.manifest.excluded}
    for upload in uploads:
        if upload.token in reasons:
            journal.uploads.refuse(upload.id, f"it cannot be fused: {reasons[upload.token]}")
    write_fused(fused, candidate, round=round_id)
    return candidate


def is_current(candidate: Path, uploads: list[Upload], fusion: Mapping[str, Any]) -> bool:
    """Return whether a candidate exists and was made of these uploads with these settings.

    Concepts may have been withdrawn since, and a newer version may have other defaults.
    """
    from mos_common.settings import settings_to_json
    from mos_server.fusion.settings import FusionSettings

    try:
        manifest = json.loads((candidate / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return False
    settings = FusionSettings.from_json(fusion)
    made_by = manifest["method"], manifest["settings"]
    fused = {(concept["token"], concept["digest"], concept["weight"]) for concept in manifest["concepts"]}
    return made_by == (settings.of_method.method, settings_to_json(settings.of_method)) and fused == {
        (upload.token, upload.digest, settings.weights.get(upload.token, 1.0)) for upload in uploads
    }


def reasons_to_hold_back(round_: Round, uploads: list[Upload]) -> list[str]:
    """Return a reason for each concept that does not reach the identity the operator asked for."""
    least = round_.settings.min_identity
    if least is None:
        return []
    reasons = []
    for upload in uploads:
        if upload.identity is None:
            reasons.append(f"{upload.token} was not scored")
        elif upload.identity.fused < least:
            reasons.append(f"{upload.token} has identity {upload.identity.fused:.3f}")
    return reasons


def lost_identity(round_: Round, uploads: list[Upload]) -> dict[str, float]:
    """Return, by token, the identity lost in fusion where it exceeds `flag_loss`."""
    losses = {upload.token: upload.identity.loss for upload in uploads if upload.identity is not None}
    return {token: loss for token, loss in losses.items() if loss > round_.settings.flag_loss}


def publish(state: State, round_: Round, uploads: list[Upload]) -> Path:
    """Sign a scored candidate, make it the round's model, once, and return the model's folder."""
    from mos_server.models.publish import publish_candidate

    published, candidate = state.artefacts.model(round_.id), state.artefacts.candidate(round_.id)
    if not published.exists():
        identity = {upload.token: upload.identity for upload in uploads if upload.identity is not None}
        flagged = lost_identity(round_, uploads).keys()
        publish_candidate(candidate, published, identity, flagged, state.pki.signing_key())
    shutil.rmtree(candidate, ignore_errors=True)
    return published
