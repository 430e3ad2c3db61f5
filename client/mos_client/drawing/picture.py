"""Draw one picture into a file, for `mos-client draw`."""

from __future__ import annotations

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
from mos_common.pictures import save_picture
from mos_common.progress import CountProgress
from mos_common.regions import Region


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
    """Draw `prompt` with a fused model's folder or a concept file, and write the PNG.

    Raises:
        RequestError: there is no such model, or the prompt names a concept it does not have.
        BaseModelError, ConceptError, FusionError: the model does not fit the base, or is damaged.

    """
    if not model.exists():
        raise RequestError(f"no model at {model}: give a fused model's folder or a concept file")
    check_writable(out)
    loaded = load_base(base, device=device, dtype=dtype)
    changes, vocabulary = changes_and_words(model, loaded)
    with attached(loaded, changes):
        pictures = draw_pictures(
            loaded, [prompt], [seed], vocabulary=vocabulary, regions=regions, how=how, on_step=on_step
        )
    save_picture(pictures[0], out)


def changes_and_words(model: Path, base: Base) -> tuple[Mapping[str, LowRank], Mapping[str, Tensor]]:
    """Return the weight changes and the words that a fused model or a concept adds to the base."""
    if model.is_dir():
        fused = read_fused(model)
        check_base(fused, base)
        return fused.changes, fused.vocabulary
    concept = read_concept(model)
    check_fits(concept, base)
    return concept.pairs, {concept.name: words_of(concept, base)}
