"""Draw one picture into a file, for `mos-client draw`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from mos_common.base_model import Base, load_base
from mos_common.concept import check_fits, words_of
from mos_common.concept_file import read_concept
from mos_common.drawing import Drawing
from mos_common.drawing import draw as draw_pictures
from mos_common.edlora import LowRank, attached
from mos_common.errors import RequestError
from mos_common.files import check_writable
from mos_common.fused_model import check_base, read_fused
from mos_common.pictures import picture_format, save_picture
from mos_common.progress import CountProgress
from mos_common.regions import Region
from mos_common.words import tokenise

log = logging.getLogger(__name__)


def draw_picture(
    model: Path,
    prompt: str,
    out: Path,
    *,
    base: str = "tiny",
    regions: Sequence[Region] = (),
    seed: int = 0,
    how: Drawing | None = None,
    device: str | None = None,
    dtype: str | None = None,
    on_step: CountProgress | None = None,
) -> None:
    """Draw `prompt` with a fused model's folder or a concept file, and write the picture.

    `out` is a PNG, JPEG or WebP by its suffix.

    Raises:
        RequestError: there is no such model, the prompt names a concept it does not have, or `out`
            has another suffix.
        DrawingError: the picture is not finite.
        BaseModelError, ConceptError, FusionError: the model does not fit the base, or is damaged.

    """
    if not model.exists():
        raise RequestError(f"no model at {model}: give a fused model's folder or a concept file")
    check_writable(out)
    picture_format(out)
    loaded = load_base(base, device=device, dtype=dtype)
    changes, vocabulary = changes_and_words(model, loaded)
    _say_what_is_not_used([prompt, *(region.prompt for region in regions)], vocabulary, loaded, how)
    with attached(loaded, changes):
        pictures = draw_pictures(
            loaded, [prompt], [seed], vocabulary=vocabulary, regions=regions, how=how, on_step=on_step
        )
    save_picture(pictures[0], out)


def _say_what_is_not_used(
    prompts: Sequence[str], vocabulary: Mapping[str, Tensor], base: Base, how: Drawing | None
) -> None:
    """Log what was asked for and changes nothing: no concept, a negative prompt."""
    if vocabulary and not any(tokenise(base, prompt, vocabulary).words for prompt in prompts):
        log.info("no concept is named in the prompt; this model has %s", ", ".join(sorted(vocabulary)))
    guidance = base.preset.guidance if how is None or how.guidance is None else how.guidance
    if how is not None and how.negative and guidance == 1:
        log.warning("the negative prompt is not used: guidance is 1, which draws without it")


def changes_and_words(model: Path, base: Base) -> tuple[Mapping[str, LowRank], Mapping[str, Tensor]]:
    """Return the weight changes and the words that a fused model or a concept adds to the base."""
    if model.is_dir():
        fused = read_fused(model)
        check_base(fused, base)
        return fused.changes, fused.vocabulary
    concept = read_concept(model)
    check_fits(concept, base)
    return concept.pairs, {concept.name: words_of(concept, base)}
