"""Masked LoRAs: in its region a concept is drawn by its own unfused model, in one pass of the UNet.

Every layer answers each cell, and each text, by one model: region i and its prompt by W + ΔWi, all
around by the base's W. The text encoder reads region i's prompt with concept i's changes, keys and
values of that prompt are made with them, and spatial layers apply them in the region's cells. Cells
still attend to each other, so a region sees its neighbours. FreeFuse (2026) is of this kind; here
the regions are given, not found from attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from mos_bench.several.models import Models
from mos_bench.several.scenes import Asked
from mos_common.conditioning import Conditioning, RegionText, read_prompts
from mos_common.drawing import Drawing, decode, denoise, generators_of, noise_from, scheduler_for
from mos_common.edlora import LowRank, attached
from mos_common.layers import Group
from mos_common.regions import Region
from mos_common.words import encode_prompts
from mos_common.written_prompts import Phase


@torch.inference_mode()
def masked(models: Models, asked: Asked, how: Drawing) -> Float[Tensor, "3 height width"]:
    """Draw a picture of regions, each by its concept's own model."""
    base, how = models.base, asked.sized(how)
    height, width = how.sized_for(base)
    size = (height // base.pixels_per_latent, width // base.pixels_per_latent)
    guidance = base.preset.guidance if how.guidance is None else how.guidance
    around = read_prompts(base, [asked.in_class_words], {}, guidance=guidance, negative=how.negative, size=size)
    texts = [
        _read_by(models, name, region, around, how.negative)
        for name, region in zip(asked.names, asked.regions, strict=True)
    ]
    conditioning = replace(around, regions=tuple(texts))
    generators = generators_of([asked.seed])
    with (
        models.attached(fused=False, own=True) as own,
        own.placed([asked.in_class_words], asked.regions, models.words, [Phase(0, conditioning)], how.steps) as placed,
        _own_keys_and_values(models, asked.names, conditioning),
    ):
        latents = denoise(
            base,
            noise_from(base, generators, height, width),
            conditioning,
            scheduler_for(base, how),
            how.steps,
            generators,
            own=placed,
        )
    return decode(base, latents, how)[0]


def _read_by(models: Models, name: str, region: Region, around: Conditioning, negative: str) -> RegionText:
    """Return a region's prompt and negative prompt as the concept's own text encoder reads them."""
    base = models.base
    with attached(base, models.changes(name, Group.TEXT)):
        features, against = encode_prompts(base, [region.prompt, negative], {name: models.words[name]})
    if not negative and base.force_zeros_for_empty_prompt:
        against = torch.zeros_like(against)
    return RegionText(region, features, against if around.unconditional_rows else None)


@contextmanager
def _own_keys_and_values(models: Models, names: Sequence[str], conditioning: Conditioning) -> Iterator[None]:
    """Make keys and values of each region's texts with its concept's changes.

    Layers read the rows of the batch, then the regions' prompts, then their negative prompts.
    """
    first, negatives = len(conditioning.features), len(conditioning.own_negatives)
    owners: list[str | None] = [*[None] * first, *names, *(names if negatives else ())]
    with ExitStack() as hooks:
        for layer in models.base.layout.by_group[Group.CROSS]:
            pairs = [models.concepts[name].pairs.get(layer.name) if name else None for name in owners]
            hooks.callback(layer.module.register_forward_hook(partial(_changed_by_row, pairs)).remove)
        yield


def _changed_by_row(pairs: Sequence[LowRank | None], _module: object, read: tuple[Any, ...], answer: Tensor) -> Tensor:
    """Add each row's own change to a layer's answer."""
    (rows,) = read
    assert len(rows) == len(pairs), f"{len(rows)} texts: expected {len(pairs)}"
    own = [
        out if pair is None else out + linear(row, pair.change().to(row))
        for pair, row, out in zip(pairs, rows, answer, strict=True)
    ]
    return torch.stack(own)
