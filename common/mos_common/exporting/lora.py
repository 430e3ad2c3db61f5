"""Weight changes as one LoRA file in kohya's spelling, which most tools read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.spellings import kohya_name


def lora_tensors(changes: Mapping[str, LowRank], base: Base, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the factors of every layer in kohya's spelling: ΔW = (alpha / rank) · up · down.

    All layers share one alpha, the highest rank, because diffusers 0.42 with peft 0.21 ignores
    alphas that differ between layers. Factors of a lower rank are scaled down to match. Factors of
    a 1x1 convolution have two more dimensions of size 1. Within a text encoder, lower ranks are
    padded with zeros, since diffusers gives its text projection the most common rank of the
    encoder's layers.
    """
    modules = {layer.name: layer.module for layer in base.layout.layers}
    ranks = _ranks_to_write({layer: pair.rank for layer, pair in changes.items() if pair.rank})
    alpha = highest_rank(changes)
    tensors = {}
    for layer, rank in ranks.items():
        pair = changes[layer]
        A = nn.functional.pad(pair.A, (0, 0, 0, rank - pair.rank))
        B = nn.functional.pad(pair.B, (0, rank - pair.rank))
        # ΔW = pair.scale · B · A, so up · down = (rank / alpha) · ΔW is B · A of this scale.
        scale = pair.scale * rank / alpha
        even = LowRank(A, B, alpha=scale * rank).balanced()
        down, up = even.A.to(dtype), even.B.to(dtype)
        if isinstance(modules[layer], nn.Conv2d):
            down, up = down[:, :, None, None], up[:, :, None, None]
        name = kohya_name(layer, base)
        tensors[f"{name}.lora_down.weight"] = down.contiguous()
        tensors[f"{name}.lora_up.weight"] = up.contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
    return tensors


def highest_rank(changes: Mapping[str, LowRank]) -> int:
    """Return the highest rank of some changes, which is also the alpha of their file."""
    return max((pair.rank for pair in changes.values()), default=0) or 1


def _ranks_to_write(ranks: Mapping[str, int]) -> dict[str, int]:
    """Return the rank to write for every layer; in a text encoder, the highest of its layers."""
    highest: dict[str, int] = {}
    for layer, rank in ranks.items():
        part = layer.partition(".")[0]
        highest[part] = max(rank, highest.get(part, 0))
    return {
        layer: rank if layer.startswith("unet.") else highest[layer.partition(".")[0]] for layer, rank in ranks.items()
    }
