"""LoRA files of kohya, A1111, diffusers, PEFT and the paper's repository as pairs of our layers.

Their factors have several names and mean one thing: ΔW = (alpha / rank) · up · down. Linear layers and 1x1 convolutions are taken over;
whatever cannot be is refused by name, since a LoRA with a part left out draws something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mos_client.importing.spellings import spellings
from mos_common.base_model import BaseModel
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError

FACTOR = re.compile(
    r"(?P<layer>.+?)(?:\.lora)?(?:_linear_layer|_layer)?"
    r"\.(?:lora_)?(?P<half>A|B|down|up)(?:\.default)?\.weight|(?P<scaled>.+)\.alpha"
)
HALVES = {"A": "A", "down": "A", "B": "B", "up": "B"}
OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon with a Tucker core",
    "diff": "a full-rank difference",
    "w_norm": "a trained norm",
    "lora_B.bias": "a LoRA with biases",
}


def pairs_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], base: BaseModel) -> dict[str, LowRank]:
    """The change of every layer.

    Raises:
        ConceptError: a tensor is of another kind of adapter, of no layer of the base, or half a pair; the message names it.

    """
    table, written = spellings(base), _written(metadata)
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        found = FACTOR.fullmatch(name)
        if not found:
            raise ConceptError(
                f"{name} is {_kind_of(name)}; only LoRA of linear layers and 1x1 convolutions is imported"
            )
        theirs = found["layer"] or found["scaled"]
        if theirs not in table:
            raise ConceptError(_unknown(theirs, name, tensor, base))
        if found["scaled"]:
            alphas[table[theirs]] = float(tensor)
        else:
            halves.setdefault(table[theirs], {})[HALVES[found["half"]]] = tensor
    pairs = {}
    for layer, both in sorted(halves.items()):
        if len(both) != 2:
            raise ConceptError(f"{layer} has only one of its two factors: the file is incomplete")
        A, B = (_as_matrix(layer, both[half]) for half in "AB")
        part, _, module = layer.partition(".")
        pairs[layer] = LowRank(A, B, alphas.get(layer, written(part).alpha_of(module, A.shape[0])))
    return pairs


def _as_matrix(layer: str, factor: Tensor) -> Tensor:
    """A factor as (out x in); that of a 1x1 convolution has two sides of length 1 more."""
    if factor.ndim == 4 and tuple(factor.shape[2:]) == (1, 1):
        factor = factor[:, :, 0, 0]
    if factor.ndim != 2:
        raise ConceptError(
            f"{layer}: a factor of shape {tuple(factor.shape)} is of a convolution larger than 1x1, which is not imported"
        )
    return factor.float()


@dataclass(frozen=True)
class _Written:
    """What diffusers writes about one part of the model into a file's metadata, as PEFT calls it."""

    lora_alpha: float | None
    alpha_pattern: Mapping[str, float]
    rank_stabilised: bool

    def alpha_of(self, module: str, rank: int) -> float:
        """The alpha of a module; its rank where nothing was written. Rank-stabilised LoRA divides by the root of the rank."""
        by_name = (alpha for end, alpha in self.alpha_pattern.items() if module == end or module.endswith(f".{end}"))
        alpha = next(by_name, self.lora_alpha)
        if alpha is None:
            return float(rank)
        return alpha * rank**0.5 if self.rank_stabilised else alpha


def _written(metadata: Mapping[str, str]) -> Callable[[str], _Written]:
    """By part of the model (`unet`, `text_encoder`, …) what the metadata say.

    Raises:
        ConceptError: they are no JSON, or tell of a kind that is not imported.

    """
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        parts = {key.partition(".")[0] for key in config}
        found = {
            part: _Written(
                None if config.get(f"{part}.lora_alpha") is None else float(config[f"{part}.lora_alpha"]),
                {str(k): float(v) for k, v in (config.get(f"{part}.alpha_pattern") or {}).items()},
                bool(config.get(f"{part}.use_rslora")),
            )
            for part in parts
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise ConceptError("the file's lora_adapter_metadata cannot be read") from error
    if any(config.get(f"{part}.use_dora") for part in parts):
        raise ConceptError("the file is a DoRA; only LoRA of linear layers and 1x1 convolutions is imported")
    return lambda part: found.get(part, _Written(None, {}, rank_stabilised=False))


def _kind_of(name: str) -> str:
    return next((kind for part, kind in OTHER_KINDS.items() if part in name), "no factor of a LoRA")


def _unknown(theirs: str, name: str, tensor: Tensor, base: BaseModel) -> str:
    if tensor.ndim == 4 and tuple(tensor.shape[2:]) != (1, 1):
        return f"{name} changes a convolution larger than 1x1, which is not imported"
    return f"{name} changes {theirs}, which is no linear layer or 1x1 convolution of {base.name}: import it with the base it was made for (--base)"
