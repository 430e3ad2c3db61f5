"""Cross-attention with one text encoding per layer, regions, and watched words.

Within `conditioned`, every cross-attention of the UNet has a processor that knows which encoding it
reads. So nothing of ours travels through diffusers: `encoder_hidden_states` is an ordinary tensor,
and the processors leave it aside. (The documented channel, `cross_attention_kwargs`, also reaches
the self-attentions, whose processors warn about every name they do not know.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mos_common.base_model import Base
from mos_common.conditioning import Conditioning
from mos_common.regions import RegionShares

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

    from mos_common.control.residuals import Residuals

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


@dataclass
class ConditionedUNet:
    """The UNet of a base while it reads one conditioning; created by `conditioned`.

    `watched`, and `residuals`, which pictures add to the UNet, belong to the caller of
    `conditioned`. With `keep`, keys and values are computed once, at the first pass, and hold while
    text and weights stay the same. In training neither does. `progress` is the share of the steps
    that were done before the running pass, and `shares` says which region has which cells: hooks on
    other layers may ask both. `plain`: in the running pass nothing is watched and no region holds.
    """

    base: Base
    conditioning: Conditioning
    watched: WatchedWords | None = None
    keep: bool = False
    residuals: Residuals | None = None
    progress: float = 0.0
    plain: bool = False
    readers: tuple[LayerwiseCrossAttention, ...] = field(default=(), repr=False)

    @cached_property
    def shares(self) -> RegionShares:
        """The shares of the regions on every feature map."""
        regions = [text.region for text in self.conditioning.regions]
        return RegionShares(regions, self.conditioning.size, self.base.device)

    def predict(
        self, noisy: Float[Tensor, "batch c h w"], times: Tensor, progress: float = 0.0
    ) -> Float[Tensor, "batch c h w"]:
        """Return the UNet's prediction; XL also reads the pooled prompts and the size."""
        assert self._is_on(), "call predict within the `conditioned` block that made this UNet"
        base, pooled = self.base, self.conditioning.pooled
        self.progress = progress
        self.plain = self.watched is None and not self.active()
        if self.keep:
            self._keep()
        added = None
        if pooled is not None:
            height, width = (base.pixels_per_latent * int(side) for side in noisy.shape[2:])
            size = torch.tensor([[height, width, 0, 0, height, width]], device=noisy.device, dtype=pooled.dtype)
            added = {"text_embeds": pooled, "time_ids": size.expand(len(noisy), -1)}
        # The UNet requires a text even though our processors ignore it; a view costs nothing.
        text = self.conditioning.features[:, 0]
        more = self.residuals.arguments(self, noisy, times, added) if self.residuals else {}
        predicted: Tensor = base.unet(noisy, times, encoder_hidden_states=text, added_cond_kwargs=added, **more).sample
        return predicted

    def keys_and_values(self, place: int) -> KeysAndValues:
        """Return one cross-attention's keys and values: rows, regions, the regions' negatives."""
        cross, conditioning = self.base.layout.cross_attentions[place], self.conditioning
        k = cross.word_layer
        features = conditioning.features[:, k]
        if conditioning.regions:
            prompts = [text.features[k][None] for text in conditioning.regions]
            negatives = [text.negative[k][None] for text in conditioning.regions if text.negative is not None]
            features = torch.cat([features, *prompts, *negatives])
        if cross.module.norm_cross:
            features = cross.module.norm_encoder_hidden_states(features)
        return _heads(cross.module, cross.module.to_k(features)), _heads(cross.module, cross.module.to_v(features))

    def active(self) -> Sequence[int]:
        """Return the numbers of the regions that hold in the running pass."""
        return self.shares.active(self.progress) if self.conditioning.regions else ()

    def _keep(self) -> None:
        """Compute all keys and values that are not kept yet.

        They are tensors of the processors, so a compiled block reads them as its inputs: looked up
        by the number of the attention, every block would be compiled for its own number.
        """
        for reader in self.readers:
            if reader.kept is None:
                both = self.keys_and_values(reader.place)
                assert not any(each.requires_grad for each in both), (
                    "keys and values that require a gradient must not be kept"
                )
                reader.kept = both

    def _is_on(self) -> bool:
        processor = self.base.layout.cross_attentions[0].module.processor
        return isinstance(processor, LayerwiseCrossAttention) and processor.unet is self


class LayerwiseCrossAttention:
    """The processor of one cross-attention: it reads that layer's own encoding of each prompt.

    `place` counts the cross-attentions in execution order.

    Regionally controllable sampling (paper, section 3.4) replaces the attention to the prompt by
    that to a region's prompt where the region is. With si the share of region i in a cell, which is
    0 or 1 for the paper's boxes, and Q the queries of a prompt's row,

        h = (1 - Σi si) · softmax(Q K^T/√d) V  +  Σi si · softmax(Q Ki^T/√d) Vi

    On an unconditional row K and V are of the picture's negative prompt, and Ki and Vi of region
    i's own; a region without one has the picture's. Guidance then acts on the two rows as always.
    """

    def __init__(self, place: int, unet: ConditionedUNet) -> None:
        self.place, self.unet = place, unet
        self.kept: KeysAndValues | None = None

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
        kept, count = self.kept, len(query)
        if kept is not None and self.unet.plain:  # what a compiled block is compiled for
            return scaled_dot_product_attention(query, kept[0][:count], kept[1][:count])
        attended: Tensor = self._attended_otherwise(query)
        return attended

    @torch.compiler.disable
    def _attended_otherwise(self, query: Tensor) -> Tensor:
        """Attend where words are watched, regions hold, or nothing is kept."""
        unet = self.unet
        key, value = self.kept or unet.keys_and_values(self.place)
        if unet.watched is not None:
            unet.watched.look(self.place, query, key[: len(query)])
        active = unet.active()
        if not active:
            return scaled_dot_product_attention(query, key[: len(query)], value[: len(query)])
        return self._in_regions(query, key, value, active)

    def _in_regions(self, query: Tensor, key: Tensor, value: Tensor, active: Sequence[int]) -> Tensor:
        """Attend to all texts in one call, and sum by the equation above."""
        conditioning, count = self.unet.conditioning, len(query)
        first, own = conditioning.unconditional_rows, conditioning.own_negatives
        share = self.unet.shares.at(self.unet.progress, query.shape[2]).to(query.dtype)
        # Each text that replaces another: its number, on which rows, and its share of each cell.
        placed = [(count + i, slice(first, count), s) for i, s in zip(active, share, strict=True)]
        after = count + len(conditioning.regions)
        placed += [(after + own.index(i), slice(0, first), s) for i, s in zip(active, share, strict=True) if i in own]
        queries = [query, *(query[rows] for _, rows, _ in placed)]
        texts = [*range(count), *(text for text, rows, _ in placed for _ in range(rows.start, rows.stop))]
        if texts != list(range(len(key))):
            key, value = key[texts], value[texts]
        attended = scaled_dot_product_attention(torch.cat(queries), key, value)
        whole, *parts = torch.split(attended, [len(rows) for rows in queries])
        rest = torch.ones(count, query.shape[2], dtype=query.dtype, device=query.device)
        for _, rows, s in placed:
            rest[rows] -= s
        summed: Tensor = whole * rest[:, None, :, None]
        for part, (_, rows, s) in zip(parts, placed, strict=True):
            summed[rows] += part * s[:, None]
        return summed


@contextmanager
def conditioned(
    base: Base,
    conditioning: Conditioning,
    *,
    watched: WatchedWords | None = None,
    keep: bool = False,
    residuals: Residuals | None = None,
) -> Iterator[ConditionedUNet]:
    """Make the UNet's cross-attentions read `conditioning`; restore their processors afterwards.

    With `keep`, keys and values are computed once and reused: text and weights must stay the same.
    In training they do not, and the backward pass belongs inside too: gradient checkpointing runs
    the processors again on the way back.
    """
    unet = ConditionedUNet(base, conditioning, watched, keep, residuals)
    modules = [cross.module for cross in base.layout.cross_attentions]
    unet.readers = tuple(LayerwiseCrossAttention(place, unet) for place in range(len(modules)))
    before = [module.processor for module in modules]
    try:
        for module, reader in zip(modules, unet.readers, strict=True):
            module.processor = reader
        yield unet
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.processor = processor


def _heads(attn: Attention, rows: Tensor) -> Tensor:
    batch, count, width = rows.shape
    return rows.reshape(batch, count, attn.heads, width // attn.heads).transpose(1, 2)
