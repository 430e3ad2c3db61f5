"""The fused model: one low-rank change per layer, all concepts' words, and a manifest.

adapter.safetensors      <layer>.lora_A.weight (r x d_in), <layer>.lora_B.weight (d_out x r),
                         float32, alpha = rank
embeddings.safetensors   one tensor (cross-attention layers x words x width) per concept, by token
manifest.json            the base, the concepts, how they were fused, how well each survived, and
                         the digests of the other files
manifest.sig             the operator's signature of manifest.json
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.errors import BaseModelError, ConceptError, FusionError
from mos_common.fingerprint import is_base, why_not
from mos_common.identity_scores import Identity

ADAPTER, EMBEDDINGS, MANIFEST = "adapter.safetensors", "embeddings.safetensors", "manifest.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class NamedConcept:
    """A concept and its participant; together they make the token that prompts use."""

    participant: str
    concept: Concept

    @property
    def token(self) -> str:
        """`<alice/cat>`, or `<cat>` where there are no participants (files fused by hand)."""
        return f"<{self.participant}/{self.concept.name[1:]}" if self.participant else self.concept.name


class Survival(BaseModel):
    """How well one concept survived fusion in one group of layers.

    `energy_kept` is 1 - ‖Xi (Δ* - ΔWi)ᵀ‖² / ‖Xi ΔWiᵀ‖² over the group: 1 is perfect. `residual`
    maps layers to the mean square of Xi (Δ* - ΔWi)ᵀ per row.
    """

    model_config = ConfigDict(extra="forbid")
    energy_kept: float
    residual: dict[str, float]


class FusedConcept(BaseModel):
    """One concept in the manifest.

    `flagged`: it lost more of its identity than the operator's threshold.
    """

    model_config = ConfigDict(extra="forbid")
    token: str
    participant: str
    name: str
    class_word: str
    digest: Sha256
    licence: str
    author: str
    weight: float = 1.0
    survival: dict[str, Survival]
    identity: Identity | None = None
    flagged: bool = False


class Excluded(BaseModel):
    """A concept that could not be fused."""

    model_config = ConfigDict(extra="forbid")
    token: str
    reason: str


class File(BaseModel):
    """The size and digest of a file of the model when the manifest was written."""

    model_config = ConfigDict(extra="forbid")
    size: int
    sha256: Sha256


class Manifest(BaseModel):
    """The contents of `manifest.json`.

    `drift` is by group of layers: the energy of the fused change on ordinary prompts, divided by
    the energy of the base's output there.
    """

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    base: Sha256
    base_name: str
    method: str
    settings: dict[str, object]
    versions: dict[str, str]
    concepts: list[FusedConcept]
    excluded: list[Excluded] = Field(default_factory=list)
    drift: dict[str, float] = Field(default_factory=dict)
    round: str | None = None
    files: dict[str, File] = Field(default_factory=dict)


@dataclass(frozen=True)
class FusedModel:
    """A fused model in memory."""

    changes: Mapping[str, LowRank]
    vocabulary: Mapping[str, Tensor]
    manifest: Manifest


def read_fused(folder: Path) -> FusedModel:
    """Read a fused model's folder.

    Downloads are verified separately (`mos_common.signing.verify_model`).

    Raises:
        FusionError: the folder is not a fused model, or a file of it is damaged.

    """
    for name in (MANIFEST, ADAPTER, EMBEDDINGS):
        if not (folder / name).is_file():
            raise FusionError(f"{folder} is not a fused model: {name} is missing")
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        tensors, vocabulary = load_file(folder / ADAPTER), load_file(folder / EMBEDDINGS)
    except (OSError, ValidationError, ConceptError, SafetensorError) as error:
        raise FusionError(f"{folder} is damaged ({str(error).splitlines()[0]}): download or fuse it again") from error
    layers = {name.rpartition(".lora_")[0] for name in tensors}
    try:
        pairs = {layer: (tensors[f"{layer}.lora_A.weight"], tensors[f"{layer}.lora_B.weight"]) for layer in layers}
    except KeyError as error:
        raise FusionError(f"{folder} is damaged ({error.args[0]} is missing): download or fuse it again") from error
    changes = {layer: LowRank(A, B, float(A.shape[0])) for layer, (A, B) in sorted(pairs.items())}
    return FusedModel(changes, vocabulary, manifest)


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
