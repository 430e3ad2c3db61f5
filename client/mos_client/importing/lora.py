"""Read LoRA files of kohya, A1111, diffusers, PEFT and the paper's repository.

Their factors have several names and mean the same: ΔW = (alpha / rank) · up · down. Linear layers
and 1x1 convolutions are imported. Anything else is refused by name, since a LoRA with a part
missing draws something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.spellings import spellings

FACTOR = re.compile(
    r"(?P<layer>.+?)(?:\.lora)?(?:_linear_layer|_layer)?"
    r"\.(?:lora_)?(?P<half>A|B|down|up)(?:\.default)?\.weight|(?P<scaled>.+)\.alpha"
)
PEFT_CONFIG = "adapter_config.json"
HALVES = {"A": "A", "down": "A", "B": "B", "up": "B"}
OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon with a Tucker core",
    ".diff": "a full-rank difference",
    "w_norm": "a trained norm",
    "lora_B.bias": "a LoRA with biases",
}


def pairs_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: Base) -> dict[str, LowRank]:
    """Return the change of every layer.

    Raises:
        ConceptError: a tensor belongs to another kind of adapter, to no layer of the base, or to an
            incomplete pair; the message names it.

    """
    table, written = spellings(base), _written(metadata)
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        match = FACTOR.fullmatch(name)
        if not match:
            raise ConceptError(
                f"{name} is {_kind_of(name)}; only LoRAs of linear layers and 1x1 convolutions can be imported"
            )
        theirs = match["layer"] or match["scaled"]
        if theirs not in table:
            raise ConceptError(_unknown(theirs, name, tensors, base))
        if match["scaled"]:
            alphas[table[theirs]] = _as_number(name, tensor)
        else:
            halves.setdefault(table[theirs], {})[HALVES[match["half"]]] = tensor
    pairs = {}
    for layer in sorted(halves.keys() | alphas.keys()):
        both = halves.get(layer, {})
        if len(both) != 2:
            raise ConceptError(f"{layer} has only {len(both)} of its two factors: the file is incomplete")
        A, B = (_as_matrix(layer, both[half]) for half in "AB")
        if A.shape[0] != B.shape[1]:
            raise ConceptError(f"{layer}: factors of shape {tuple(A.shape)} and {tuple(B.shape)} do not form a pair")
        part, _, module = layer.partition(".")
        pairs[layer] = LowRank(A, B, alphas.get(layer, written(part).alpha_of(module, A.shape[0])))
    return pairs


def _as_matrix(layer: str, factor: Tensor) -> Tensor:
    """Return a factor as (out x in); that of a 1x1 convolution has two more axes of length 1."""
    if factor.ndim == 4 and tuple(factor.shape[2:]) == (1, 1):
        factor = factor[:, :, 0, 0]
    if factor.ndim != 2:
        raise ConceptError(
            f"{layer}: a factor of shape {tuple(factor.shape)} is of a convolution larger than 1x1, "
            "which cannot be imported"
        )
    return factor.float()


def _as_number(name: str, tensor: Tensor) -> float:
    if tensor.numel() != 1 or not torch.isfinite(tensor).all():
        raise ConceptError(f"{name} has shape {tuple(tensor.shape)}; expected one finite number for an alpha")
    return float(tensor)


def truncated(pair: LowRank, rank: int) -> tuple[LowRank, float]:
    """Return the nearest change of at most `rank`, and the share of ‖ΔW‖² that it keeps.

    ΔW = s·B·A = Q_B (s·R_B·R_Aᵀ) Q_Aᵀ: the singular values are those of the small core.
    """
    QB, RB = torch.linalg.qr(pair.B.double())
    QA, RA = torch.linalg.qr(pair.A.double().T)
    U, sigma, Vt = torch.linalg.svd(pair.scale * (RB @ RA.T))
    kept, roots = min(rank, len(sigma)), sigma[:rank].sqrt()
    A, B = roots[:, None] * (Vt[:kept] @ QA.T), (QB @ U[:, :kept]) * roots
    whole = float(sigma.square().sum())
    share = float(sigma[:rank].square().sum()) / whole if whole else 1.0
    return LowRank(A.float(), B.float(), float(kept)), share


@dataclass(frozen=True)
class _Written:
    """PEFT's configuration of one part of the model (diffusers) or of all of it (PEFT)."""

    lora_alpha: float | None
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Written:
        """Read PEFT's configuration.

        Raises:
            ConceptError: it is of a kind that cannot be imported.

        """
        kind = "DoRA" if config.get("use_dora") else str(config.get("peft_type") or "LORA")
        if kind != "LORA":
            raise ConceptError(
                f"the file is a {kind}; only LoRAs of linear layers and 1x1 convolutions can be imported"
            )
        alpha = config.get("lora_alpha")
        pattern = {str(end): float(value) for end, value in (config.get("alpha_pattern") or {}).items()}
        return cls(None if alpha is None else float(alpha), pattern, bool(config.get("use_rslora")))

    def alpha_of(self, module: str, rank: int) -> float:
        """Return the alpha of a module, or its rank if none was written.

        Rank-stabilised LoRA divides by the root of the rank.
        """
        by_name = (alpha for end, alpha in self.alpha_pattern.items() if module == end or module.endswith(f".{end}"))
        alpha = next(by_name, self.lora_alpha)
        if alpha is None:
            return float(rank)
        return alpha * rank**0.5 if self.rank_stabilised else alpha


def _written(metadata: Mapping[str, str]) -> Callable[[str], _Written]:
    """Return a function from a part of the model, such as `unet`, to its configuration.

    That is the part's own in the metadata, or else PEFT's own configuration.

    Raises:
        ConceptError: they are not JSON, or of a kind that cannot be imported.

    """
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        everywhere = _Written.of(json.loads(metadata.get(PEFT_CONFIG, "{}")))
        parts = {key.partition(".")[0] for key in config}
        by_part = {
            part: _Written.of(
                {key.partition(".")[2]: value for key, value in config.items() if key.startswith(f"{part}.")}
            )
            for part in parts
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ConceptError(
            "the LoRA's configuration (lora_adapter_metadata, adapter_config.json) cannot be read"
        ) from error
    return lambda part: by_part.get(part, everywhere)


def _kind_of(name: str) -> str:
    return next((kind for part, kind in OTHER_KINDS.items() if part in name), "not a LoRA factor")


def _unknown(theirs: str, name: str, tensors: Mapping[str, Tensor], base: Base) -> str:
    of_layer = [tensor for other, tensor in tensors.items() if other.startswith(f"{theirs}.")]
    if any(tensor.ndim == 4 and tuple(tensor.shape[2:]) != (1, 1) for tensor in of_layer):
        return f"{name} changes a convolution larger than 1x1, which cannot be imported"
    return (
        f"{name} changes {theirs}, which is not a linear layer or 1x1 convolution of {base.name}: "
        "import it with the base it was made for (--base)"
    )
