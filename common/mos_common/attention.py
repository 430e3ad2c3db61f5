"""The one cross-attention of the project: a text encoding for each layer, regions, and a look at what a word attends to.

diffusers hands `encoder_hidden_states` untouched to every attention processor, so a `TextMemory` travels through the UNet in
its place: processor k takes layer k's features out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mos_common.base_model import Base
from mos_common.layers import cross_attentions, word_layer_numbers
from mos_common.regions import Region, shares

KeysAndValues = tuple[Tensor, Tensor]


@dataclass
class WatchedWords:
    """How much each cell attends to some tokens of its prompt, written down while the UNet runs.

    `positions[b, w]` is where watched word w stands in the prompt of row b; `maps[k]` is what cross-attention layer k gives it,
    the mean over heads.
    """

    positions: Int[Tensor, "batch words"]
    maps: dict[int, Float[Tensor, "batch words cells"]] = field(default_factory=dict, repr=False)

    def look(self, layer: int, query: Tensor, key: Tensor) -> None:
        """softmax(Q Kᵀ/√d), its columns of the watched tokens."""
        share = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).float().softmax(dim=3).mean(dim=1)
        columns = self.positions[:, None, :].expand(-1, share.shape[1], -1)
        self.maps[layer] = share.gather(2, columns).transpose(1, 2)


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
    the text and the weights stay the same, as over the steps of one drawing; wrong in training. `pooled` is what Stable Diffusion
    XL reads of a whole prompt; `watched` writes down what some words attend to.
    """

    features: Float[Tensor, "batch layers tokens width"]
    regions: Sequence[RegionText] = ()
    first_regional_row: int = 0
    aspect: float = 1.0
    keep: bool = False
    pooled: Float[Tensor, "batch width"] | None = None
    watched: WatchedWords | None = None
    _kept: dict[tuple[int, int], KeysAndValues] = field(default_factory=dict, repr=False)

    def keys_and_values(self, attention: Any, place: int, layer: int, region: int = -1) -> KeysAndValues:
        """Keys and values of the prompts (region -1) or of one region, (batch, heads, tokens, head width), at one place."""
        if (place, region) in self._kept:
            return self._kept[place, region]
        features = self.features[:, layer] if region < 0 else self.regions[region].features[layer][None]
        if attention.norm_cross:
            features = attention.norm_encoder_hidden_states(features)
        both = (_heads(attention, attention.to_k(features)), _heads(attention, attention.to_v(features)))
        if self.keep:
            self._kept[place, region] = both
        return both


class LayerwiseCrossAttention:
    """Cross-attention number `place`, in execution order, over encoding `layer` of a `TextMemory`.

    In the cells of region i the attention to the prompt is replaced by attention to region i's prompt; where regions overlap
    their results are averaged (paper section 3.4, regionally controllable sampling).
    """

    def __init__(self, place: int, layer: int) -> None:
        self.place, self.layer = place, layer

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
        key, value = memory.keys_and_values(attn, self.place, self.layer)
        if memory.watched is not None:
            memory.watched.look(self.place, query, key)
        attended = scaled_dot_product_attention(query, key, value)
        if not memory.regions:
            return attended
        height, width = feature_map_size(query.shape[2], memory.aspect)
        share = shares([text.region for text in memory.regions], height, width).to(query)
        regional_query = query[memory.first_regional_row :]
        outside = (share.sum(dim=0) == 0).to(query)[:, None]
        regional = attended[memory.first_regional_row :] * outside
        for i in range(len(memory.regions)):
            key, value = memory.keys_and_values(attn, self.place, self.layer, i)
            rows = regional_query.shape[0]
            here = scaled_dot_product_attention(
                regional_query, key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1)
            )
            regional = regional + here * share[i][:, None]
        return torch.cat([attended[: memory.first_regional_row], regional])


def predict(
    base: Base, noisy: Float[Tensor, "batch c h w"], times: Tensor, memory: TextMemory
) -> Float[Tensor, "batch c h w"]:
    """What the UNet predicts; the caller has `layerwise_attention` on. XL is also told the pooled prompt and the picture's size."""
    added = None
    if memory.pooled is not None:
        height, width = (base.pixels_per_latent * int(side) for side in noisy.shape[2:])
        size = torch.tensor([[height, width, 0, 0, height, width]], device=noisy.device, dtype=memory.pooled.dtype)
        added = {"text_embeds": memory.pooled, "time_ids": size.expand(len(noisy), -1)}
    predicted: Tensor = base.unet(noisy, times, encoder_hidden_states=memory, added_cond_kwargs=added).sample
    return predicted


def feature_map_size(cells: int, aspect: float) -> tuple[int, int]:
    """(height, width) of a feature map with so many cells and about that width/height."""
    best = min((h for h in range(1, cells + 1) if cells % h == 0), key=lambda h: abs(cells / h / h - aspect) / aspect)
    return best, cells // best


Processors = Sequence[tuple[Any, LayerwiseCrossAttention]]


def layerwise_processors(base: Base) -> Processors:
    """Every cross-attention of the UNet with the processor that it gets within `layerwise_attention`."""
    layers = zip(cross_attentions(base), word_layer_numbers(base), strict=True)
    return [(module, LayerwiseCrossAttention(place, layer)) for place, ((_, module), layer) in enumerate(layers)]


@contextmanager
def layerwise_attention(base: Base, processors: Processors | None = None) -> Iterator[None]:
    """Within: the UNet's cross-attention layers read a `TextMemory`. Afterwards: the processors it came with.

    Whoever enters this often makes `layerwise_processors` once: finding them is a walk over all modules.
    """
    exchanged = layerwise_processors(base) if processors is None else processors
    before = [module.processor for module, _ in exchanged]
    try:
        for module, processor in exchanged:
            module.processor = processor
        yield
    finally:
        for (module, _), processor in zip(exchanged, before, strict=True):
            module.processor = processor


def _heads(attn: Any, rows: Tensor) -> Tensor:
    batch, count, width = rows.shape
    return rows.reshape(batch, count, attn.heads, width // attn.heads).transpose(1, 2)
