"""Turn the admitted uploads of a round into its model: fuse, compare, publish or hold back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mos_common.errors import FusionError, TrustError
from mos_server.state.concepts import named_concepts
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from mos_server.state.records import HELD_BACK, Round, Upload, describe_fusion

if TYPE_CHECKING:
    from mos_common.base_model import Base
    from mos_common.fused_model import Manifest
    from mos_server.models.own import OwnFiles
    from mos_server.round.attribution import Attribution


def fuse_candidate(
    state: State,
    journal: Journal,
    round_id: str,
    base: Base,
    progress: Callable[[str], None],
    attribution: Attribution | None = None,
) -> Path:
    """Fuse the concepts admitted to a round, with the round's settings, into its candidate.

    An earlier candidate is replaced and its scores are forgotten. A concept that cannot be fused,
    or may not be fused with the others, is refused with the reason, and the others are fused. The
    manifest says so too, but of copies: the journal names of whom one is a copy, what is published
    does not. `attribution` is told which concept is recorded.

    Raises:
        FusionError: nothing is left to fuse.
        UndecidedError: concepts only ruin each other.
        RequestError: a setting of the round is unknown to this version.

    """
    from mos_common.fused_model import Excluded
    from mos_server.comparison import near_copies, too_loud_together
    from mos_server.fusion.cluster import recorder_for
    from mos_server.fusion.fuse import fuse
    from mos_server.fusion.settings import FusionSettings
    from mos_server.models.publish import write_fused

    uploads = journal.uploads.admitted(round_id)
    if not uploads:
        raise FusionError("every concept of this round was withdrawn: nothing is left to fuse")
    fusion = journal.rounds.get(round_id).settings.fusion
    round_settings = FusionSettings.from_json(fusion)
    concepts, loud = named_concepts(state, uploads), dict[str, str]()
    if not round_settings.keep_all:
        copies = near_copies(concepts, base)
        _refuse(journal, uploads, {token: f"it is left out: {reason}" for token, reason in copies.items()}, progress)
        uploads = [upload for upload in uploads if upload.token not in copies]
        concepts = [named for named in concepts if named.token not in copies]
        loud = {token: f"it is left out: {reason}" for token, reason in too_loud_together(concepts, base).items()}
        for token, reason in loud.items():
            progress(f"{token}: {reason}")
        concepts = [named for named in concepts if named.token not in loud]
    settings = round_settings.for_tokens({named.token for named in concepts})
    progress(f"settings of fusion: {describe_fusion(fusion)}")
    for token in sorted(round_settings.weights.keys() - settings.weights.keys()):
        progress(f"{token} is not in this round: its weight is not used")
    candidate = state.artefacts.candidate(round_id)
    journal.uploads.forget_identities(round_id)
    shutil.rmtree(candidate, ignore_errors=True)
    digests = [upload.digest for upload in uploads]
    with recorder_for(settings.workers, base) as recorder, state.artefacts.moments_of(digests) as moments:
        fused = fuse(
            base,
            concepts,
            settings.of_method,
            weights=settings.weights,
            moments_dir=moments,
            recorder=recorder if attribution is None or recorder is not None else attribution.recorder(base),
            progress=progress,
        )
    reasons = {each.token: f"it cannot be fused: {each.reason}" for each in fused.manifest.excluded}
    fused.manifest.excluded.extend(Excluded(token=token, reason=reason) for token, reason in loud.items())
    # Written first: a server that is killed in between fuses the same concepts again, so that the
    # manifest names what was left out.
    write_fused(fused, candidate, round=round_id)
    _refuse(journal, uploads, reasons | loud)
    return candidate


def _refuse(
    journal: Journal,
    uploads: Sequence[Upload],
    reasons: Mapping[str, str],
    progress: Callable[[str], None] = lambda line: None,
) -> None:
    """Take uploads out of their round in one step, each with its reason by token."""
    with journal.decision():
        for upload in uploads:
            if upload.token in reasons:
                journal.uploads.refuse(upload.id, reasons[upload.token])
    for token, reason in reasons.items():
        progress(f"{token}: {reason}")


def is_current(candidate: Path, uploads: list[Upload], fusion: Mapping[str, Any], round_id: str) -> bool:
    """Return whether a candidate exists and was made for this round of these uploads and settings.

    Concepts may have been withdrawn since, a newer version may have other defaults, and the folder
    may be another round's or a part of one.
    """
    manifest = _manifest(candidate)
    return manifest is not None and _is_made_of(manifest, uploads, fusion, round_id) and _is_whole(candidate)


def _is_made_of(manifest: Manifest, uploads: list[Upload], fusion: Mapping[str, Any], round_id: str) -> bool:
    from mos_server.fusion.methods.method import settings_in_manifest
    from mos_server.fusion.settings import FusionSettings

    settings = FusionSettings.from_json(fusion)
    wanted = (round_id, settings.of_method.method, settings_in_manifest(settings.of_method))
    fused = {(concept.token, concept.digest, concept.weight) for concept in manifest.concepts}
    return (manifest.round, manifest.method, manifest.settings) == wanted and fused == {
        (upload.token, upload.digest, settings.weights.get(upload.token, 1.0)) for upload in uploads
    }


def _manifest(folder: Path) -> Manifest | None:
    from mos_common.fused_model import Manifest
    from mos_common.json_models import JsonModelError, from_json
    from mos_common.model_files import MANIFEST

    try:
        return from_json(Manifest, (folder / MANIFEST).read_bytes())
    except (OSError, JsonModelError):
        return None


def _is_whole(folder: Path) -> bool:
    from mos_common.model_files import MANIFEST
    from mos_common.signing import check_files

    try:
        check_files(folder, (folder / MANIFEST).read_bytes())
    except (OSError, TrustError):
        return False
    return True


def reasons_to_hold_back(round_: Round, uploads: list[Upload]) -> list[str]:
    """Return why a model is not published: concepts below the identity asked for, or a review."""
    reasons, least = list[str](), round_.settings.min_identity
    for upload in uploads if least is not None else ():
        if upload.identity is None:
            reasons.append(f"{upload.token} was not scored")
        elif least is not None and upload.identity.fused < least:
            reasons.append(f"{upload.token} has identity {upload.identity.fused:.3f}")
    if reasons:
        reasons.append(f"the round requires an identity of at least {least:g}")
    if round_.settings.review:
        reasons.append("its operator looks at it first")
    return reasons


def lost_identity(round_: Round, uploads: list[Upload]) -> dict[str, float]:
    """Return, by token, the identity lost in fusion where it exceeds `flag_loss`."""
    losses = {upload.token: upload.identity.loss for upload in uploads if upload.identity is not None}
    return {token: loss for token, loss in losses.items() if loss > round_.settings.flag_loss}


def is_made(state: State, journal: Journal, round_: Round) -> bool:
    """Return whether the round's model lies signed in its place: all but the publication is done.

    A folder there that is not this model is removed if it is a publication of this round that did
    not take effect, such as one with a concept that was withdrawn since, and else set aside.
    """
    state.artefacts.fetch_model(round_.id)
    folder, uploads = state.artefacts.model(round_.id), journal.uploads.admitted(round_.id)
    if not folder.exists():
        return False
    manifest = _manifest(folder)
    if manifest is not None and _is_signed_here(state, folder):
        identity = {upload.token: upload.identity for upload in uploads}
        flagged = lost_identity(round_, uploads).keys()
        agreed = {upload.token for upload in publishing_own(round_, uploads)}
        if _is_made_of(manifest, uploads, round_.settings.fusion, round_.id) and all(
            (concept.identity, concept.flagged, concept.own is not None)
            == (identity[concept.token], concept.token in flagged, concept.token in agreed)
            for concept in manifest.concepts
        ):
            return True
        arrived = {(upload.token, upload.digest) for upload in journal.uploads.of(round_.id)}
        if manifest.round == round_.id and {(each.token, each.digest) for each in manifest.concepts} <= arrived:
            state.artefacts.delete_model(round_.id)
            return False
    aside = state.artefacts.set_model_aside(round_.id)
    journal.notes.add(round_.id, f"{folder} was there and is not this round's model: it is {aside.name} now")
    return False


def publishing_own(round_: Round, uploads: list[Upload]) -> list[Upload]:
    """Return the uploads whose own changes are published: both sides agreed."""
    return [upload for upload in uploads if upload.own and round_.settings.publishes == "own"]


def publish(state: State, journal: Journal, round_: Round, uploads: list[Upload], base: Base | None) -> Path | None:
    """Sign a scored candidate, make it the round's model, and return the model's folder.

    Own changes of those who agreed are written beside it first, each signed by itself; without
    them, no base is needed.

    The model is published by one entry of the journal, made only if the round is still as given
    (not cancelled, not to be reviewed) and has exactly these uploads. Until then nobody is given
    the folder, and if that entry cannot be made, nothing is published: the folder is removed and
    None is returned.
    """
    from mos_common.digests import digest_of_file
    from mos_common.model_files import MANIFEST
    from mos_server.models.own import write_own
    from mos_server.models.publish import publish_candidate

    published, candidate = state.artefacts.model(round_.id), state.artefacts.candidate(round_.id)
    if not is_made(state, journal, round_):
        identity = {upload.token: upload.identity for upload in uploads if upload.identity is not None}
        flagged = lost_identity(round_, uploads).keys()
        own = _own_files(state, publishing_own(round_, uploads), base)
        key = state.pki.signing_key()
        if own:
            write_own(published, own, key)
        publish_candidate(candidate, published, identity, flagged, key, {token: own[token].digest for token in own})
    state.artefacts.keep_model(round_.id)
    manifest = digest_of_file(published / MANIFEST)
    with journal.decision():
        now, held = journal.rounds.get(round_.id), round_.status == HELD_BACK
        goes_on = now.status == HELD_BACK if held else now.unfinished and now.settings.review == round_.settings.review
        allowed = goes_on and journal.uploads.admitted(round_.id) == uploads
        if allowed:
            journal.notes.add(round_.id, f"published: {published}")
            details: dict[str, Any] = {"round": round_.id, "manifest": manifest}
            if own_published := publishing_own(round_, uploads):
                details["own"] = len(own_published)
            journal.audit.add("model signed", details=details)
            (journal.rounds.publish_held if held else journal.rounds.publish)(round_.id, manifest)
    shutil.rmtree(candidate, ignore_errors=True)
    if not allowed:
        state.artefacts.delete_model(round_.id)
        return None
    return published


def _own_files(state: State, uploads: list[Upload], base: Base | None) -> dict[str, OwnFiles]:
    from mos_server.models.own import own_files

    if base is None:
        return {}
    return {named.token: own_files(named, base) for named in named_concepts(state, uploads)}


def _is_signed_here(state: State, folder: Path) -> bool:
    from mos_common.signing import verify_model

    try:
        verify_model(folder, state.pki.signing_key_pem())
    except TrustError:
        return False
    return True
