"""Write a fused model's folder, and sign it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from mos_common.digests import digest_of_bytes
from mos_common.errors import StateError, TrustError
from mos_common.files import canonical_json, replacing_folder, write_atomically
from mos_common.fused_model import (
    ADAPTER,
    EMBEDDINGS,
    File,
    FusedModel,
    Manifest,
    fused_tensors,
)
from mos_common.json_models import from_json
from mos_common.model_files import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from mos_common.identity_scores import Identity


def write_fused(fused: FusedModel, folder: Path, *, round: str | None = None) -> None:
    """Write a fused model, whole or not at all.

    Raises:
        StateError: the folder already exists (a published model is never changed), or cannot be
            written.

    """
    if folder.exists():
        raise StateError(
            f"{folder} already exists and a fused model is never changed: choose another --out, or remove it"
        )
    words = {token: tensor.contiguous().clone() for token, tensor in fused.vocabulary.items()}
    files = {ADAPTER: save(fused_tensors(fused)), EMBEDDINGS: save(words)}
    described = {name: File(size=len(data), sha256=digest_of_bytes(data)) for name, data in files.items()}
    manifest = fused.manifest.model_copy(update={"files": described, "round": round})
    with replacing_folder(folder) as beside:
        for name, data in files.items():
            write_atomically(beside / name, data)
        write_atomically(beside / MANIFEST, manifest_bytes(manifest))


def publish_candidate(
    candidate: Path,
    published: Path,
    identity: Mapping[str, Identity],
    flagged: Collection[str],
    signing_key: Any,
    own: Mapping[str, str] | None = None,
) -> None:
    """Publish a scored candidate: add the scores to its manifest and sign it.

    `identity` has the scores by token, as the clients measured them. `flagged` are the tokens of
    concepts that lost much identity in fusion. `own` are the digests of own changes, by token.

    Raises:
        StateError: the model is already published, its files are no longer those that were scored,
            or it cannot be written.

    """
    from mos_common.signing import check_files, sign_model

    if published.exists():
        raise StateError(f"{published} is published already and is never changed")
    scored_manifest = (candidate / MANIFEST).read_bytes()
    try:
        check_files(candidate, scored_manifest)
    except TrustError as error:
        raise StateError(f"{candidate} is no longer what was scored, so it is not signed: run a new round") from error
    manifest = from_json(Manifest, scored_manifest)
    concepts = [
        concept.model_copy(
            update={
                "identity": identity.get(concept.token),
                "flagged": concept.token in flagged,
                "own": (own or {}).get(concept.token),
            }
        )
        for concept in manifest.concepts
    ]
    with replacing_folder(published) as beside:
        for name in manifest.files:
            shutil.copyfile(candidate / name, beside / name)
        write_atomically(beside / MANIFEST, manifest_bytes(manifest.model_copy(update={"concepts": concepts})))
        sign_model(beside, signing_key)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`: canonical, so that equal models have equal manifests."""
    return canonical_json(manifest.model_dump(mode="json")) + b"\n"
