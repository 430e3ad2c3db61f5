"""The fused model: one low-rank change per layer, all concepts' words, and a manifest.

adapter.safetensors      <layer>.lora_A.weight (r x d_in), <layer>.lora_B.weight (d_out x r),
                         float32, alpha = rank
embeddings.safetensors   one tensor (cross-attention layers x words x width) per concept, by token
manifest.json            the base, the concepts, how they were fused, how well each survived, and
                         the digests of the other files
model.sig, manifest.sig  the operator's signature of all of these, in one of two forms (`signing`)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import FailFast, Field, SerializerFunctionWrapHandler, model_serializer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.errors import BaseModelError, FusionError, TrustError
from mos_common.fingerprint import is_base, why_not
from mos_common.identity_scores import Identity
from mos_common.json_models import JsonModelError, Sha256, StrictModel, from_json
from mos_common.model_files import MANIFEST, read_manifest
from mos_common.model_folder import check_model, trust_for, unsigned_remark
from mos_common.names import TOKEN
from mos_common.texts import ShownText, visible

log = logging.getLogger(__name__)
ADAPTER, EMBEDDINGS = "adapter.safetensors", "embeddings.safetensors"
Token = Annotated[str, Field(pattern=f"^{TOKEN.pattern}$")]
_Row = Annotated[list[float], FailFast()]


@dataclass(frozen=True)
class NamedConcept:
    """A concept and its participant; together they make the token that prompts use."""

    participant: str
    concept: Concept

    @property
    def token(self) -> str:
        """`<alice/cat>`, or `<cat>` where there are no participants (files fused by hand)."""
        return f"<{self.participant}/{self.concept.name[1:]}" if self.participant else self.concept.name


class Survival(StrictModel):
    """How well one concept survived fusion in one group of layers.

    `energy_kept` is 1 - ‖Xi (Δ* - ΔWi)ᵀ‖² / ‖Xi ΔWiᵀ‖² over the group: 1 is perfect. `residual`
    maps layers to the mean square of Xi (Δ* - ΔWi)ᵀ per row.
    """

    energy_kept: float
    residual: dict[str, float]


class FusedConcept(StrictModel):
    """One concept in the manifest.

    `flagged`: it lost more of its identity than the operator's threshold. `own` is the digest of
    the manifest of its own changes (`own.folder`), which is written only where they are published.
    """

    token: Token
    participant: ShownText
    name: ShownText
    class_word: ShownText
    digest: Sha256
    licence: ShownText
    author: ShownText
    weight: float = 1.0
    survival: dict[ShownText, Survival]
    identity: Identity | None = None
    flagged: bool = False
    own: Sha256 | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave `own` out where there are none: earlier releases do not know the field."""
        dumped: dict[str, object] = dump(self)
        return dumped if self.own else {name: value for name, value in dumped.items() if name != "own"}


class Excluded(StrictModel):
    """A concept that could not be fused, or was left out because it ruins others."""

    token: ShownText
    reason: ShownText


class File(StrictModel):
    """The size and digest of a file of the model when the manifest was written."""

    size: int
    sha256: Sha256


class Manifest(StrictModel):
    """The contents of `manifest.json`.

    `drift` is by group of layers: the energy of the fused change on ordinary prompts, divided by
    the energy of the base's output there. `influence` is by group too. Row j, in the order of
    `concepts`, is the energy that each keeps without concept j; on the diagonal, with all of them.
    """

    format: Literal[1] = 1
    base: Sha256
    base_name: ShownText
    method: ShownText
    settings: dict[str, object]
    versions: dict[ShownText, ShownText]
    concepts: list[FusedConcept]
    excluded: list[Excluded] = Field(default_factory=list)
    drift: dict[ShownText, float] = Field(default_factory=dict)
    influence: dict[ShownText, Annotated[list[_Row], FailFast()]] = Field(default_factory=dict)
    round: ShownText | None = None
    files: dict[str, File] = Field(default_factory=dict)


@dataclass(frozen=True)
class FusedModel:
    """A fused model in memory."""

    changes: Mapping[str, LowRank]
    vocabulary: Mapping[str, Tensor]
    manifest: Manifest


def read_fused(folder: Path, *, kit: Path | None = None, candidate: bool = False) -> FusedModel:
    """Read a fused model's folder, after every check of `mos_common.model_folder`.

    The signature is checked against `kit`, or the kit of the state folder that the model lies in.
    A `candidate` bears none: the operator announced the digest of its manifest.

    Raises:
        FusionError: the folder is not a fused model, or a file of it is damaged.
        TrustError: a file was changed, or the operator of the kit did not sign the model.

    """
    manifest = read_fused_manifest(folder, kit=kit, candidate=candidate)
    try:
        tensors, vocabulary = load_file(folder / ADAPTER), load_file(folder / EMBEDDINGS)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, str(error).splitlines()[0]) from error
    if odd := next((token for token in vocabulary if not TOKEN.fullmatch(token)), None):
        raise _damaged(folder, f"{visible(odd)[:80]!r} is not the name of a concept")
    layers = {name.rpartition(".lora_")[0] for name in tensors}
    try:
        pairs = {layer: (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]) for layer in layers}
    except KeyError as error:
        raise _damaged(folder, f"{error.args[0]} is missing") from error
    changes = {layer: LowRank(A, B, float(A.shape[0])) for layer, (A, B) in sorted(pairs.items())}
    return FusedModel(changes, vocabulary, manifest)


def read_fused_manifest(folder: Path, *, kit: Path | None = None, candidate: bool = False) -> Manifest:
    """Read the manifest of a fused model's folder, after the checks of `read_fused`.

    Raises:
        FusionError, TrustError: as `read_fused`.

    """
    for name in (MANIFEST, ADAPTER, EMBEDDINGS):
        if not (folder / name).exists():
            raise FusionError(f"{folder} is not a fused model: {name} is missing")
    try:
        data = read_manifest(folder)
        manifest = from_json(Manifest, data)
    except JsonModelError as error:
        raise _damaged(folder, str(error)) from error
    for name in (ADAPTER, EMBEDDINGS):
        if name not in manifest.files:
            raise TrustError(
                f"the manifest of {folder} does not list {name}, so nobody vouches for it: fuse or "
                "download the model again"
            )
    trust = None if candidate else trust_for(folder, kit)
    check_model(folder, data, trust)
    if trust is None and not candidate:
        log.info("%s", unsigned_remark(folder))
    return manifest


def fused_tensors(model: FusedModel) -> dict[str, Tensor]:
    """Return the tensors of `adapter.safetensors`."""
    tensors = {}
    for layer, pair in model.changes.items():
        tensors[f"{layer}.lora_A.weight"] = pair.A.to(torch.float32).contiguous()
        tensors[f"{layer}.lora_B.weight"] = (pair.scale * pair.B).to(torch.float32).contiguous()
    return tensors


def check_base(model: FusedModel, base: Base) -> None:
    """Check that a fused model was fused on a base.

    Raises:
        BaseModelError: it was fused on another one.

    """
    if not is_base(model.manifest.base, base):
        raise BaseModelError(
            f"this model was fused on {model.manifest.base_name} ({model.manifest.base[:12]}), not on "
            f"{base.name} ({base.fingerprint[:12]})"
            f"{why_not(model.manifest.base, base)}: give that base model with --base"
        )


def _damaged(folder: Path, reason: str) -> FusionError:
    return FusionError(f"{folder} is damaged ({reason}): download or fuse it again")
