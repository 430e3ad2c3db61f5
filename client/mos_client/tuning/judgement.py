"""Judge a tuning before its first step: all that a folder, a caption or a flag can do wrong.

`mos-client check`, `tune` and `join` ask this one function, so that what `check` accepts is tuned
to the end. `join` asks it before its kit is used. What is quick is judged first.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mos_client.pictures.folder import Picture
from mos_client.tuning.memory_plan import Plan, plan_for, tuned_parameters
from mos_client.tuning.parameters import tuned_layers
from mos_client.tuning.reach import Reach, words_in_caption
from mos_client.tuning.request import TuneRequest
from mos_client.tuning.settings import TuningSettings
from mos_common.base_model import Base, load_base
from mos_common.concept import Concept, check_name_is_free
from mos_common.concept_file import concept_to_bytes
from mos_common.errors import ConceptError, PicturesError, RequestError, StateError
from mos_common.files import check_writable, could_not_write
from mos_common.names import is_ordinary_text

log = logging.getLogger(__name__)
NAMED = 3  # files that a message names


@dataclass(frozen=True)
class Judged:
    """A tuning that can be done: everything that it needs, and what its owner should know of it."""

    request: TuneRequest
    base: Base
    settings: TuningSettings
    plan: Plan
    tuned_on: Sequence[Picture]
    held_back: Sequence[Picture]
    remarks: Sequence[str]


def judge(
    request: TuneRequest,
    out: Path,
    work: Path,
    *,
    base: Base | None = None,
    pictures: tuple[list[Picture], list[Picture]] | None = None,
) -> Judged:
    """Return what a tuning of `request` into the file `out` needs, having checked all of it.

    Its checkpoints go into the folder `work`. `base` is the request's base model, `pictures` its
    pictures (to tune on, held back), where the caller has read them already.

    Raises:
        StateError: a file cannot be written, or the disk has too little room.
        PicturesError: the pictures cannot be used, or a caption does not fit; the message names it.
        BaseModelError: there is no such base model, or none that can be tuned.
        ConceptError: a text does not fit into the concept file.
        RequestError: a flag or setting is out of range, or the memory is too small.

    """
    check_writable(out)
    tuned_on, held_back = pictures or request.pictures()
    base = base or load_base(request.base, device=request.device, dtype=request.dtype)
    settings = TuningSettings.of(base.preset, steps=request.steps, seed=request.seed, changes=request.settings)
    check_name_is_free(request.concept, base)
    _judge_texts(request, base)
    _judge_rank(settings, base)
    remarks = list(_judge_captions([*tuned_on, *held_back], base, request.class_word, settings))
    _judge_disk(base, settings, len(tuned_on), out, work)
    if request.vram is not None or base.device.type == "cuda":
        log.info("planning the memory of a step on %s", base.name)
    plan = plan_for(base, settings.batch, settings.rank, request.vram)
    return Judged(request, base, settings, plan, tuned_on, held_back, remarks)


def _judge_texts(request: TuneRequest, base: Base) -> None:
    """Check the texts that become part of the concept file and of prompts."""
    word = request.class_word
    if not is_ordinary_text(word):
        raise ConceptError(f"class word {word!r} names a concept: give an ordinary word like cat, person or car")
    if not list(base.tokenizer(word, add_special_tokens=False).input_ids):
        raise ConceptError(
            f"class word {word!r} has no letters this base model reads: give a word like cat, person or car"
        )
    without_tensors = Concept(
        request.concept, word, base.fingerprint, {}, licence=request.licence, author=request.author
    )
    concept_to_bytes(without_tensors)  # raises if a text does not fit


def _judge_rank(settings: TuningSettings, base: Base) -> None:
    layers = tuned_layers(base, settings.method)
    smallest = min(layers, key=lambda layer: min(layer.d_in, layer.d_out), default=None)
    if smallest is not None and settings.rank > (most := min(smallest.d_in, smallest.d_out)):
        raise RequestError(
            f"rank {settings.rank} is larger than layer {smallest.name} of {base.name}, which is {smallest.d_out} x "
            f"{smallest.d_in}: give a rank of at most {most}"
        )


def _judge_captions(
    pictures: Sequence[Picture], base: Base, class_word: str, settings: TuningSettings
) -> Iterator[str]:
    """Check that every caption names the concept within what the base reads; yield remarks."""
    reach = Reach(base, words_in_caption(base, class_word, settings))
    beyond, cut = [], []
    for picture in pictures:
        for caption in picture.captions:
            tokens, through = reach.count(caption)
            name = str(picture.caption_file or picture.path)
            if through > reach.most:
                beyond.append((through, name))
            elif tokens > reach.most:
                cut.append((tokens, name))
    if beyond:
        raise PicturesError(
            f"{_listed(beyond)}: the concept is named only after the {reach.most} tokens that {base.name} reads of a "
            f"caption (the longest names it up to token {max(beyond)[0]}). Name it earlier, or shorten the caption"
        )
    if cut:
        yield (
            f"{_listed(cut)}: longer than the {reach.most} tokens that {base.name} reads of a caption (the longest "
            f"has {max(cut)[0]}): the rest is never read"
        )


def _listed(files: Sequence[tuple[int, str]]) -> str:
    names = list(dict.fromkeys(name for _, name in files))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _judge_disk(base: Base, settings: TuningSettings, pictures: int, out: Path, work: Path) -> None:
    """Check the room for the concept file, checkpoints and latents.

    Raises:
        StateError: there is too little.

    """
    finished, running = written_bytes(base, settings, pictures)
    wanted: dict[int, tuple[Path, int]] = {}
    for place, size in ((out.parent, finished), (work, running)):
        folder = next(path for path in (place, *place.absolute().parents) if path.is_dir())
        try:
            device = folder.stat().st_dev
        except OSError as error:
            raise could_not_write(folder, error) from error
        wanted[device] = (folder, wanted.get(device, (folder, 0))[1] + size)
    for folder, size in wanted.values():
        if size > (free := shutil.disk_usage(folder).free):
            raise StateError(
                f"{folder} has {_megabytes(free)} free, tuning writes up to {_megabytes(size)} there (concept file, "
                "checkpoints, latents): make room, or choose another place"
            )


def written_bytes(base: Base, settings: TuningSettings, pictures: int) -> tuple[int, int]:
    """Return the most bytes at once of (the concept file, the folder of the run).

    Each file is written beside its predecessor before it takes its place.
    """
    pairs = tuned_parameters(base, settings.rank) if settings.method.has_pairs else 0
    numbers = pairs + settings.word_count * base.word_width * base.layout.word_layers
    latents = base.latent_channels * (base.picture_size // base.pixels_per_latent) ** 2
    views = settings.crops * (2 if settings.mirror else 1) * pictures
    # Of every number: value, average, two moments, and the best value so far.
    checkpoint = 4 * numbers * (5 if settings.watch_every else 4)
    return 2 * 2 * numbers, 2 * checkpoint + 2 * 4 * views * latents


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
