"""The one cross-attention of the project: a text encoding for each layer, and regions.

diffusers hands `encoder_hidden_states` untouched to every attention processor, so a `TextMemory` travels through the UNet in
its place: processor k takes layer k's features out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mos_common.base_model import BaseModel
from mos_common.layers import cross_attentions
from mos_common.regions import Region, shares

KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class RegionText:
    """A region and the features of its prompt, one encoding per cross-attention layer."""

    region: Region
    features: Float[Tensor, "layers tokens width"]


@dataclass
class TextMemory:
    """What the cross-attention layers read: features per prompt and layer, and regions.

    `features[b, k]` belongs to row b of the batch and cross-attention layer k. Regions speak in rows `first_regional_row` and
    after (the rows before are the unconditional ones). `keep=True` computes keys and values once and keeps them: right while
    the text and the weights stay the same, as over the steps of one drawing; wrong in training.
    """

    features: Float[Tensor, "batch layers tokens width"]
    regions: Sequence[RegionText] = ()
    first_regional_row: int = 0
    aspect: float = 1.0
    keep: bool = False
    _kept: dict[tuple[int, int], KeysAndValues] = field(default_factory=dict, repr=False)

    def keys_and_values(self, attention: Any, layer: int, region: int = -1) -> KeysAndValues:
        """Keys and values of the prompts (region -1) or of one region, (batch, heads, tokens, head width)."""
        if (layer, region) in self._kept:
            return self._kept[layer, region]
        features = self.features[:, layer] if region < 0 else self.regions[region].features[layer][None]
        if attention.norm_cross:
            features = attention.norm_encoder_hidden_states(features)
        both = (_heads(attention, attention.to_k(features)), _heads(attention, attention.to_v(features)))
        if self.keep:
            self._kept[layer, region] = both
        return both


class LayerwiseCrossAttention:
    """Cross-attention layer k, in execution order, over encoding k of a `TextMemory`.

    In the cells of region i the attention to the prompt is replaced by attention to region i's prompt; where regions overlap
    their results are averaged (paper section 3.4, regionally controllable sampling).
    """

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: TextMemory,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend; `hidden_states` is (batch, cells, width), as in every transformer block of a UNet."""
        memory = encoder_hidden_states
        query = _heads(attn, attn.to_q(hidden_states))
        attended = self._attended(memory, attn, query)
        batch, heads, cells, width = attended.shape
        out: Tensor = attn.to_out[0](attended.transpose(1, 2).reshape(batch, cells, heads * width))
        return attn.to_out[1](out) / attn.rescale_output_factor  # type: ignore[no-any-return]

    def _attended(self, memory: TextMemory, attn: Any, query: Tensor) -> Tensor:
        key, value = memory.keys_and_values(attn, self.layer)
        attended = scaled_dot_product_attention(query, key, value)
        if not memory.regions:
            return attended
        height, width = feature_map_size(query.shape[2], memory.aspect)
        share = shares([text.region for text in memory.regions], height, width).to(query)
        regional_query = query[memory.first_regional_row :]
        outside = (share.sum(dim=0) == 0).to(query)[:, None]
        regional = attended[memory.first_regional_row :] * outside
        for i in range(len(memory.regions)):
            key, value = memory.keys_and_values(attn, self.layer, i)
            rows = regional_query.shape[0]
            here = scaled_dot_product_attention(
                regional_query, key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1)
            )
            regional = regional + here * share[i][:, None]
        return torch.cat([attended[: memory.first_regional_row], regional])


def feature_map_size(cells: int, aspect: float) -> tuple[int, int]:
    """(height, width) of a feature map with so many cells and about that width/height."""
    best = min((h for h in range(1, cells + 1) if cells % h == 0), key=lambda h: abs(cells / h / h - aspect) / aspect)
    return best, cells // best


@contextmanager
def layerwise_attention(base: BaseModel) -> Iterator[None]:
    """Within: the UNet's cross-attention layers read a `TextMemory`. Afterwards: the processors it came with."""
    modules: list[Any] = [module for _, module in cross_attentions(base)]
    before = [module.processor for module in modules]
    try:
        for k, module in enumerate(modules):
            module.processor = LayerwiseCrossAttention(k)
        yield
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.processor = processor


def _heads(attn: Any, rows: Tensor) -> Tensor:
    batch, count, width = rows.shape
    return rows.reshape(batch, count, attn.heads, width // attn.heads).transpose(1, 2)
