"""Prompts as people write them, read into what the UNet is conditioned on at each step.

`read_prompts` of `mos_common.conditioning` reads plain texts, such as captions. Here a prompt may
have weights, change on the way, and be longer than the text encoder reads. A plain prompt of usual
length becomes the very conditioning that `read_prompts` makes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mos_common.base_model import Base
from mos_common.conditioning import Conditioning, region_texts, without_rows
from mos_common.prompt_grammar import WrittenPrompt, parse_prompt
from mos_common.prompt_names import split_at_concepts
from mos_common.regions import Region
from mos_common.weighted_text import MOST_CHUNKS, WeightedText, encode_weighted, lengthened, weighted_text
from mos_common.words import TextFeatures, Vocabulary, encode_pooled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """A conditioning, and the evaluation of the UNet, from 0, at which it begins."""

    begins: int
    conditioning: Conditioning


@dataclass(frozen=True)
class _Constant:
    """What does not change from phase to phase."""

    guidance: float
    negative: str
    regions: tuple[Region, ...]
    size: tuple[int, int]


def read_written_prompts(
    base: Base,
    prompts: Sequence[str],
    vocabulary: Vocabulary,
    *,
    steps: int,
    evaluations: int,
    guidance: float = 1.0,
    negative: str = "",
    regions: Sequence[Region] = (),
    size: tuple[int, int] = (1, 1),
) -> tuple[Phase, ...]:
    """Read prompts, the negative prompt and those of regions by the grammar of `prompt_grammar`.

    The first phase begins with the first evaluation. One line is logged of what is cut or is not
    understood. All texts of a phase have as many chunks as the longest.

    Raises:
        RequestError: a prompt names a concept that `vocabulary` does not have, or names it too
            late.

    """
    unconditional = [] if guidance == 1 else [negative] * len(prompts)
    own = [region.negative for region in regions if unconditional and region.negative is not None]
    said = [*unconditional, *prompts, *(region.prompt for region in regions), *own]
    written = {text: parse_prompt(text) for text in said}
    told = _Constant(guidance, negative, tuple(regions), size)
    begins = {0}.union(*(each.changes(steps, evaluations) for each in written.values()))
    phases, cuts = list[Phase](), dict[str, None]()
    for index in sorted(begins):
        texts = {
            text: weighted_text(base, each.parts(index, steps, evaluations), vocabulary)
            for text, each in written.items()
        }
        cuts |= dict.fromkeys(text.cut for text in texts.values() if text.cut)
        count = max(len(text.chunks) for text in texts.values())
        long = dict(zip(texts, lengthened(base, list(texts.values()), count), strict=True))
        phases.append(Phase(index, _conditioning(base, long, [*unconditional, *prompts], vocabulary, told)))
    _say_what_is_not_read(base, list(cuts), list(written.values()))
    return tuple(phases)


def _conditioning(
    base: Base, texts: Mapping[str, WeightedText], rows: Sequence[str], vocabulary: Vocabulary, told: _Constant
) -> Conditioning:
    """Encode what the texts say in one phase; `rows` are those of the batch."""

    def encode(said: Sequence[str]) -> TextFeatures:
        return encode_weighted(base, [texts[text] for text in said], vocabulary)

    features, guided = encode(rows), told.guidance != 1
    pooled = encode_pooled(base, [texts[row].chunks[0].ids for row in rows], vocabulary)
    if guided and not told.negative and base.force_zeros_for_empty_prompt:
        features = without_rows(features, len(rows) // 2)
        pooled = None if pooled is None else without_rows(pooled, len(rows) // 2)
    of_regions = region_texts(base, told.regions, encode, guided=guided)
    return Conditioning(features, told.guidance, of_regions, told.size, pooled)


def concepts_named(base: Base, prompt: str, vocabulary: Vocabulary) -> list[str]:
    """Return the concepts that a written prompt names at some step, as the vocabulary has them.

    Raises:
        RequestError: something in <> is no concept.

    """
    said = parse_prompt(prompt)
    return list(dict.fromkeys(token for text in said.texts() for token in split_at_concepts(base, text, vocabulary)[1]))


def _say_what_is_not_read(base: Base, cuts: Sequence[str], written: Sequence[WrittenPrompt]) -> None:
    """Log one line of what the texts of a drawing say in vain."""
    said = []
    if cuts:
        most = MOST_CHUNKS * (base.text_length - 2)
        said.append(f"cut after {most} tokens: {', '.join(map(repr, cuts))}")
    if remarks := dict.fromkeys(remark for each in written for remark in each.remarks):
        said.append(f"not understood, and read as text: {', '.join(remarks)} (a bracket is written \\( or \\[)")
    if said:
        log.warning("prompt: %s", "; ".join(said))
