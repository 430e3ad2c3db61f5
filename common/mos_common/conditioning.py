"""The conditioning of the UNet: an immutable value, passed beside the noisy latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.regions import Region
from mos_common.words import (
    TextFeatures,
    Vocabulary,
    cut_text,
    encode_pooled,
    encode_prompts,
    encode_token_ids,
    tokenise,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionText:
    """A region and the features of its prompt, one encoding per word layer.

    `negative` are those of its own negative prompt, if it has one.
    """

    region: Region
    features: Float[Tensor, "layers tokens width"]
    negative: Float[Tensor, "layers tokens width"] | None = None


@dataclass(frozen=True)
class Conditioning:
    """The text that cross-attention reads, and how strongly the prediction follows it.

    `features[b, k]` is read for row b of the batch by every cross-attention whose word layer is k.
    With a `guidance` other than 1 (classifier-free guidance), the first half of the rows are
    unconditional texts and the second half the prompts that belong to them; with 1 all rows are
    prompts. A region's prompt applies to the prompts' rows and its negative to the unconditional
    ones; `size` is the (height, width) of the latents that regions divide. `pooled` is the encoding
    of whole prompts that Stable Diffusion XL reads as well.
    """

    features: Float[Tensor, "batch layers tokens width"]
    guidance: float = 1.0
    regions: tuple[RegionText, ...] = ()
    size: tuple[int, int] = (1, 1)
    pooled: Float[Tensor, "batch width"] | None = None

    def __post_init__(self) -> None:
        rows = len(self.features)
        assert self.guidance == 1 or rows % 2 == 0, f"{rows} rows: guidance needs an unconditional row for each prompt"

    @property
    def unconditional_rows(self) -> int:
        """The number of unconditional rows; they come before the prompts."""
        return 0 if self.guidance == 1 else len(self.features) // 2

    @property
    def own_negatives(self) -> tuple[int, ...]:
        """The numbers of the regions that have a negative prompt of their own."""
        return tuple(i for i, text in enumerate(self.regions) if text.negative is not None)


def read_prompts(
    base: Base,
    prompts: Sequence[str],
    vocabulary: Vocabulary,
    *,
    guidance: float = 1.0,
    negative: str = "",
    regions: Sequence[Region] = (),
    size: tuple[int, int] = (1, 1),
) -> Conditioning:
    """Encode plain texts and regions, and with guidance one `negative` text for each.

    Nothing in them is grammar: prompts to draw are read by `read_written_prompts`. What a text
    encoder cannot read of a text is cut, and logged.
    Without a `negative` text, the unconditional features are those of the empty text, or zeros if
    the base asks for them.

    Raises:
        RequestError: a prompt names a concept that `vocabulary` does not have, or names it too
            late.

    """
    unconditional = [] if guidance == 1 else [negative] * len(prompts)
    own = [region.negative or "" for region in regions] if unconditional else []
    for text in dict.fromkeys([*unconditional, *prompts, *(region.prompt for region in regions), *own]):
        if cut := cut_text(base, text, vocabulary):
            log.warning("too long for %s, which reads %d tokens; not read: %r", base.name, base.text_length - 2, cut)
    texts = [tokenise(base, prompt, vocabulary) for prompt in [*unconditional, *prompts]]
    features = encode_token_ids(base, texts, vocabulary)
    pooled = encode_pooled(base, texts, vocabulary)
    if not negative and base.force_zeros_for_empty_prompt:
        features = without_rows(features, len(unconditional))
        pooled = None if pooled is None else without_rows(pooled, len(unconditional))
    told = region_texts(base, regions, lambda told: encode_prompts(base, told, vocabulary), guided=bool(unconditional))
    return Conditioning(features, guidance, told, size, pooled)


def region_texts(
    base: Base, regions: Sequence[Region], encode: Callable[[list[str]], TextFeatures], *, guided: bool
) -> tuple[RegionText, ...]:
    """Encode the prompts of regions, and with guidance their own negative prompts, in one pass."""
    if not regions:
        return ()
    negatives = dict.fromkeys(region.negative for region in regions if guided and region.negative is not None)
    encoded = encode([*(region.prompt for region in regions), *negatives])
    against = dict(zip(negatives, encoded[len(regions) :], strict=True))
    if "" in against and base.force_zeros_for_empty_prompt:
        against[""] = torch.zeros_like(against[""])
    return tuple(
        RegionText(region, features, None if region.negative is None else against.get(region.negative))
        for region, features in zip(regions, encoded, strict=False)
    )


def without_rows(encoded: Tensor, rows: int) -> Tensor:
    """Return the encoded texts with zeros in place of the first rows."""
    zeroed = encoded.clone()
    zeroed[:rows] = 0
    return zeroed
