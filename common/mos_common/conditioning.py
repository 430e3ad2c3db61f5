"""The conditioning of the UNet: an immutable value, passed beside the noisy latents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.regions import Region
from mos_common.words import Vocabulary, cut_text, encode_pooled, encode_prompts, encode_token_ids, tokenise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RegionText:
    """A region and the features of its prompt, one encoding per word layer."""

    region: Region
    features: Float[Tensor, "layers tokens width"]


@dataclass(frozen=True)
class Conditioning:
    """The text that cross-attention reads, and how strongly the prediction follows it.

    `features[b, k]` is read for row b of the batch by every cross-attention whose word layer is k.
    With a `guidance` other than 1 (classifier-free guidance), the first half of the rows are
    unconditional texts and the second half the prompts that belong to them; with 1 all rows are
    prompts. Regions apply to the prompts only; `aspect` is width/height of the picture that they
    divide. `pooled` is the encoding of whole prompts that Stable Diffusion XL reads as well.
    """

    features: Float[Tensor, "batch layers tokens width"]
    guidance: float = 1.0
    regions: tuple[RegionText, ...] = ()
    aspect: float = 1.0
    pooled: Float[Tensor, "batch width"] | None = None

    def __post_init__(self) -> None:
        rows = len(self.features)
        assert self.guidance == 1 or rows % 2 == 0, f"{rows} rows: guidance needs an unconditional row for each prompt"

    @property
    def unconditional_rows(self) -> int:
        """The number of unconditional rows; they come before the prompts."""
        return 0 if self.guidance == 1 else len(self.features) // 2


def read_prompts(
    base: Base,
    prompts: Sequence[str],
    vocabulary: Vocabulary,
    *,
    guidance: float = 1.0,
    negative: str = "",
    regions: Sequence[Region] = (),
    aspect: float = 1.0,
) -> Conditioning:
    """Encode prompts and regions, and with guidance one `negative` text for each prompt.

    What a text encoder cannot read of a prompt is cut, and logged.
    Without a `negative` text, the unconditional features are those of the empty text, or zeros if
    the base asks for them.

    Raises:
        RequestError: a prompt names a concept that `vocabulary` does not have, or names it too
            late.

    """
    unconditional = [] if guidance == 1 else [negative] * len(prompts)
    for text in dict.fromkeys([*unconditional, *prompts, *(region.prompt for region in regions)]):
        if cut := cut_text(base, text, vocabulary):
            log.warning("too long for %s, which reads %d tokens; not read: %r", base.name, base.text_length - 2, cut)
    texts = [tokenise(base, prompt, vocabulary) for prompt in [*unconditional, *prompts]]
    features = encode_token_ids(base, texts, vocabulary)
    pooled = encode_pooled(base, texts, vocabulary)
    if not negative and base.force_zeros_for_empty_prompt:
        features = _without(features, len(unconditional))
        pooled = None if pooled is None else _without(pooled, len(unconditional))
    region_features = encode_prompts(base, [region.prompt for region in regions], vocabulary) if regions else ()
    region_texts = tuple(RegionText(*pair) for pair in zip(regions, region_features, strict=True))
    return Conditioning(features, guidance, region_texts, aspect, pooled)


def _without(encoded: Tensor, rows: int) -> Tensor:
    """Return the encoded texts with zeros in place of the first rows."""
    zeroed = encoded.clone()
    zeroed[:rows] = 0
    return zeroed
