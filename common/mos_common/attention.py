"""Cross-attention with one text encoding per layer, regions, and watched words.

Within `conditioned`, every cross-attention of the UNet has a processor that knows which encoding it
reads. So nothing of ours travels through diffusers: `encoder_hidden_states` is an ordinary tensor,
and the processors leave it aside. (The documented channel, `cross_attention_kwargs`, also reaches
the self-attentions, whose processors warn about every name they do not know.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mos_common.base_model import Base
from mos_common.conditioning import Conditioning
from mos_common.regions import shares

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

KeysAndValues = tuple[Tensor, Tensor]  # each (batch, heads, tokens, head width)


@dataclass
class WatchedWords:
    """Attention of each cell to some tokens of its prompt, recorded while the UNet runs.

    `positions[b, w]` is the position of watched word w in the prompt of row b; `maps[k]` is its
    attention in cross-attention module k, in execution order, averaged over heads.
    """

    positions: Int[Tensor, "batch words"]
    maps: dict[int, Float[Tensor, "batch words cells"]] = field(default_factory=dict, repr=False)

    def look(self, place: int, query: Tensor, key: Tensor) -> None:
        """Record the columns of softmax(Q Kᵀ/√d) that belong to the watched tokens."""
        share = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).float().softmax(dim=3).mean(dim=1)
        columns = self.positions[:, None, :].expand(-1, share.shape[1], -1)
        self.maps[place] = share.gather(2, columns).transpose(1, 2)


class KeyValueCache:
    """Keys and values of one conditioning, computed once, at the first step of a drawing.

    They are valid while text and weights stay the same. In training neither does, so tensors that
    require a gradient are refused.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], KeysAndValues] = {}

    def find(self, place: int, region: int) -> KeysAndValues | None:
        """Return the keys and values of a cross-attention and region, or None."""
        return self._kept.get((place, region))

    def keep(self, place: int, region: int, both: KeysAndValues) -> None:
        """Keep keys and values until the cache is dropped."""
        assert not any(each.requires_grad for each in both), (
            "keys and values that require a gradient must not be cached"
        )
        self._kept[place, region] = both


@dataclass(frozen=True)
class ConditionedUNet:
    """The UNet of a base while it reads one conditioning; created by `conditioned`.

    `watched` and `cache` belong to the caller of `conditioned`; without a cache every pass computes
    keys and values anew.
    """

    base: Base
    conditioning: Conditioning
    watched: WatchedWords | None = None
    cache: KeyValueCache | None = None

    def predict(self, noisy: Float[Tensor, "batch c h w"], times: Tensor) -> Float[Tensor, "batch c h w"]:
        """Return the UNet's prediction; XL also reads the pooled prompts and the size."""
        assert self._is_on(), "call predict within the `conditioned` block that made this UNet"
        base, pooled = self.base, self.conditioning.pooled
        added = None
        if pooled is not None:
            height, width = (base.pixels_per_latent * int(side) for side in noisy.shape[2:])
            size = torch.tensor([[height, width, 0, 0, height, width]], device=noisy.device, dtype=pooled.dtype)
            added = {"text_embeds": pooled, "time_ids": size.expand(len(noisy), -1)}
        # The UNet requires a text even though our processors ignore it; a view costs nothing.
        text = self.conditioning.features[:, 0]
        predicted: Tensor = base.unet(noisy, times, encoder_hidden_states=text, added_cond_kwargs=added).sample
        return predicted

    def keys_and_values(self, place: int, region: int = -1) -> KeysAndValues:
        """Return one cross-attention's keys and values of the prompts (region -1) or a region."""
        kept = self.cache.find(place, region) if self.cache is not None else None
        if kept is not None:
            return kept
        cross, conditioning = self.base.layout.cross_attentions[place], self.conditioning
        k = cross.word_layer
        features = conditioning.features[:, k] if region < 0 else conditioning.regions[region].features[k][None]
        if cross.module.norm_cross:
            features = cross.module.norm_encoder_hidden_states(features)
        both = _heads(cross.module, cross.module.to_k(features)), _heads(cross.module, cross.module.to_v(features))
        if self.cache is not None:
            self.cache.keep(place, region, both)
        return both

    def _is_on(self) -> bool:
        processor = self.base.layout.cross_attentions[0].module.processor
        return isinstance(processor, LayerwiseCrossAttention) and processor.unet is self


class LayerwiseCrossAttention:
    """The processor of one cross-attention: it reads that layer's own encoding of each prompt.

    `place` counts the cross-attentions in execution order.

    In the cells of region i, attention to the prompt is replaced by attention to region i's prompt;
    where regions overlap, their results are averaged (paper section 3.4, regionally controllable
    sampling).
    """

    def __init__(self, place: int, unet: ConditionedUNet) -> None:
        self.place, self.unet = place, unet

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "batch cells width"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Float[Tensor, "batch cells width"]:
        """Attend to the conditioning's text; `encoder_hidden_states` is not read (see the top)."""
        query = _heads(attn, attn.to_q(hidden_states))
        attended = self._attended(query)
        batch, heads, cells, width = attended.shape
        out: Tensor = attn.to_out[0](attended.transpose(1, 2).reshape(batch, cells, heads * width))
        out = attn.to_out[1](out) / attn.rescale_output_factor
        return out

    def _attended(self, query: Tensor) -> Tensor:
        conditioning, watched = self.unet.conditioning, self.unet.watched
        key, value = self.unet.keys_and_values(self.place)
        if watched is not None:
            watched.look(self.place, query, key)
        attended = scaled_dot_product_attention(query, key, value)
        if not conditioning.regions:
            return attended
        height, width = feature_map_size(query.shape[2], conditioning.aspect)
        share = shares([text.region for text in conditioning.regions], height, width).to(query)
        first = conditioning.unconditional_rows
        regional_query = query[first:]
        outside = (share.sum(dim=0) == 0).to(query)[:, None]
        regional = attended[first:] * outside
        for i in range(len(conditioning.regions)):
            key, value = self.unet.keys_and_values(self.place, i)
            rows = regional_query.shape[0]
            in_region = scaled_dot_product_attention(
                regional_query, key.expand(rows, -1, -1, -1), value.expand(rows, -1, -1, -1)
            )
            regional = regional + in_region * share[i][:, None]
        return torch.cat([attended[:first], regional])


@contextmanager
def conditioned(
    base: Base,
    conditioning: Conditioning,
    *,
    watched: WatchedWords | None = None,
    cache: KeyValueCache | None = None,
) -> Iterator[ConditionedUNet]:
    """Make the UNet's cross-attentions read `conditioning`; restore their processors afterwards.

    In training the backward pass belongs inside too: gradient checkpointing runs the processors
    again on the way back.
    """
    unet = ConditionedUNet(base, conditioning, watched, cache)
    modules = [cross.module for cross in base.layout.cross_attentions]
    before = [module.processor for module in modules]
    try:
        for place, module in enumerate(modules):
            module.processor = LayerwiseCrossAttention(place, unet)
        yield unet
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.processor = processor


def feature_map_size(cells: int, aspect: float) -> tuple[int, int]:
    """Return (height, width) of a feature map, given its number of cells and rough width/height."""
    best = min((h for h in range(1, cells + 1) if cells % h == 0), key=lambda h: abs(cells / h / h - aspect) / aspect)
    return best, cells // best


def _heads(attn: Attention, rows: Tensor) -> Tensor:
    batch, count, width = rows.shape
    return rows.reshape(batch, count, attn.heads, width // attn.heads).transpose(1, 2)
