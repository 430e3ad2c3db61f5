"""The folder of one concept's own spatial changes, beside a fused model.

MODEL.own/alice.cat/          for <alice/cat>; beside MODEL, which verifies without it
    adapter.safetensors       <layer>.lora_A.weight (r x d_in), <layer>.lora_B.weight (d_out x r) of
                              spatial layers of the UNet, alpha = rank: no words, no text encoder
    manifest.json             whose they are, of which base, and the digest of the other file
    model.sig, manifest.sig   the operator's signature, as a model's folder has

The manifest of the fused model names the digest of this manifest in the concept's entry.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mos_common.digests import digest_of_bytes
from mos_common.errors import ConceptError, TrustError
from mos_common.fused_model import ADAPTER, File, FusedConcept, Manifest, Token
from mos_common.json_models import JsonModelError, Sha256, StrictModel, from_json
from mos_common.model_files import not_listed, read_manifest
from mos_common.model_folder import Finding, Trust, check_model, examine, trust_for
from mos_common.own.names import beside, own_folder
from mos_common.signing import SIGNATURES
from mos_common.texts import ShownText, visible

if TYPE_CHECKING:
    from mos_common.base_model import Base
    from mos_common.edlora import LowRank


class OwnManifest(StrictModel):
    """The contents of `manifest.json` of one concept's own changes."""

    format: Literal[1] = 1
    kind: Literal["own spatial changes"] = "own spatial changes"
    base: Sha256
    base_name: ShownText
    token: Token
    digest: Sha256
    licence: ShownText
    author: ShownText
    files: dict[str, File]


def read_own(
    model: Path, manifest: Manifest, base: Base, tokens: Collection[str], kit: Path | None = None
) -> dict[str, Mapping[str, LowRank]]:
    """Return those own changes of `tokens` that lie beside a fused model, after every check.

    Raises:
        ConceptError: they do not fit the base, or change a layer beyond the bounds of rounds.
        TrustError: a folder is not the one that the model names, or its signature does not hold.

    """
    trust = trust_for(model, kit)
    folders = {
        concept.token: (own_folder(model, concept.token), concept)
        for concept in manifest.concepts
        if concept.own and concept.token in tokens
    }
    return {
        token: _read(folder, concept, base, trust) for token, (folder, concept) in folders.items() if folder.exists()
    }


def read_own_manifest(folder: Path, concept: FusedConcept, trust: Trust | None) -> OwnManifest:
    """Return the manifest of a concept's own changes, once everything of the folder holds.

    Raises:
        TrustError: it is not the folder that the model names, or its signature does not hold.

    """
    data = read_manifest(folder)
    if (error := _wrong_manifest(folder, concept, data)) is not None:
        raise error
    check_model(folder, data, trust)
    return from_json(OwnManifest, data)


def examine_own(model: Path, manifest: Manifest, trust: Trust | None) -> Iterator[Finding]:
    """Yield what holds and what does not of the own changes beside a model."""
    named = {own_folder(model, concept.token): concept for concept in manifest.concepts if concept.own}
    for folder, concept in named.items():
        whose = f"own changes of {concept.token}"
        if not os.path.lexists(folder):
            yield Finding(f"{whose}: not here, and the model is whole without them")
            continue
        try:
            data = read_manifest(folder)
            wrong = [_wrong_manifest(folder, concept, data), *(each.error for each in examine(folder, data, trust))]
            wrong += [_not_listed(folder, name) for name in not_listed(folder, data, SIGNATURES)]
        except TrustError as error:
            wrong = [error]
        yield from (Finding(whose, error) for error in wrong if error is not None)
        if not any(wrong):
            signed = ", signed by the operator" if trust else ""
            yield Finding(f"{whose}: the folder that the model names{signed}, manifest sha256 {concept.own}")
    for folder in sorted(set(_folders(beside(model))) - named.keys()):
        yield Finding("own changes", TrustError(f"{visible(str(folder))} is not named by the model: remove it"))


def _read(folder: Path, concept: FusedConcept, base: Base, trust: Trust | None) -> Mapping[str, LowRank]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from mos_common.bounds import beyond_bounds
    from mos_common.concept import Concept, check_fits
    from mos_common.concept_file import MAX_BYTES, MAX_RANK, MAX_TENSORS, PAIR
    from mos_common.edlora import LowRank
    from mos_common.layers import Group

    manifest = read_own_manifest(folder, concept, trust)
    if manifest.files.keys() != {ADAPTER} or manifest.files[ADAPTER].size > MAX_BYTES:
        raise ConceptError(f"{folder} is damaged: expected {ADAPTER} alone, of at most {MAX_BYTES} bytes")
    try:
        tensors = load_file(folder / ADAPTER)
    except (OSError, SafetensorError) as error:
        raise ConceptError(f"{folder} is damaged ({str(error).splitlines()[0]}): download it again") from error
    matches = [PAIR.fullmatch(name) for name in tensors]
    layers = {match["layer"] for match in matches if match}
    if None in matches or len(tensors) != 2 * len(layers) or len(tensors) > MAX_TENSORS:
        raise ConceptError(f"{folder} is damaged: its tensors are not pairs lora_A and lora_B")
    pairs = {layer: (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]) for layer in sorted(layers)}
    if any(len(A) > MAX_RANK or not A.is_floating_point() for A, _ in pairs.values()):
        raise ConceptError(f"{folder} is damaged: expected pairs of numbers of rank 1 to {MAX_RANK}")
    changes = {layer: LowRank(A, B, float(max(1, len(A)))) for layer, (A, B) in pairs.items()}
    known = {layer.name for layer in base.layout.by_group[Group.SPATIAL]}
    if odd := changes.keys() - known:
        raise ConceptError(f"{folder}: {min(odd)} is not a spatial layer of {base.name}: use the model's own base")
    alone = Concept(concept.name, concept.class_word, manifest.base, changes)
    if reasons := beyond_bounds(check_fits(alone, base), base):
        raise ConceptError(f"{folder} is not used: " + "; ".join(reasons[:8]))
    return changes


def _wrong_manifest(folder: Path, concept: FusedConcept, data: bytes) -> TrustError | None:
    """Return why a folder's manifest is not the one that the model names for a concept, or None."""
    if digest_of_bytes(data) != concept.own:
        return TrustError(f"{folder} is not what the model names for {concept.token}: download it again, or remove it")
    try:
        manifest = from_json(OwnManifest, data)
    except JsonModelError as error:
        return TrustError(f"{folder} has no manifest of own changes ({error})")
    if (manifest.token, manifest.digest) != (concept.token, concept.digest):
        return TrustError(
            f"{folder} has the changes of {manifest.token} {manifest.digest[:12]}, not of {concept.token}"
        )
    return None


def _not_listed(folder: Path, name: str) -> TrustError:
    return TrustError(f"{visible(name)[:80]!r} is in {folder} and not in its manifest: nothing reads it, remove it")


def _folders(path: Path) -> Iterable[Path]:
    return path.iterdir() if path.is_dir() else ()
