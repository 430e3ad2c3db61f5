"""Draw the batch of each step with one generator: pictures of one shape, captions, noise, times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mos_client.pictures.captions import TEMPLATES, movable_parts, shuffled_caption
from mos_client.pictures.examples import Example
from mos_client.tuning.loss import spread_times
from mos_client.tuning.reach import Reach
from mos_client.tuning.settings import TuningSettings


@dataclass(frozen=True)
class Batch:
    """Pictures of one shape, and what is random about them. `masks` is None if none has a mask."""

    latents: Float[Tensor, "n c h w"]
    masks: Float[Tensor, "n h w"] | None
    captions: tuple[str, ...]
    noise: Float[Tensor, "n c h w"]
    times: Int[Tensor, " n"]

    def parts(self, size: int) -> list[Batch]:
        """Return the batch in pieces of at most `size` pictures."""
        count = len(self.captions)
        cuts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
        return [
            Batch(
                self.latents[cut],
                None if self.masks is None else self.masks[cut],
                self.captions[cut],
                self.noise[cut],
                self.times[cut],
            )
            for cut in cuts
        ]


def next_batch(
    examples: Sequence[Example],
    config: TuningSettings,
    total_times: int,
    generator: torch.Generator,
    reach: Reach | None = None,
) -> Batch:
    """Return the next batch: each shape as often as it has pictures, those in shuffled rounds.

    Captions are shuffled so that the concept stays within `reach`, if it is given.
    """
    bucket = _bucket(examples, generator)
    shown, captions = [], []
    for i in _rounds(len(bucket), config.batch, generator):
        example = bucket[i]
        view = example.views[integer(len(example.views), generator)] if len(example.views) > 1 else example.views[0]
        shown.append(view)
        captions.append(_caption(example.captions_of(view), config, generator, reach))
    latents = torch.stack([view.latent for view in shown])
    masks = None
    if any(view.mask is not None for view in shown):
        whole = torch.ones(latents.shape[2:])
        masks = torch.stack([whole if view.mask is None else view.mask for view in shown])
    noise = torch.randn(latents.shape, generator=generator)
    noise = noise + config.noise_offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator)
    times = spread_times(config.batch, total_times, generator)
    return Batch(latents, masks, tuple(captions), noise, times)


def integer(below: int, generator: torch.Generator) -> int:
    """Return a random integer from 0 to `below` - 1."""
    return int(torch.randint(below, (1,), generator=generator))


def _bucket(examples: Sequence[Example], generator: torch.Generator) -> list[Example]:
    by_shape: dict[torch.Size, list[Example]] = {}
    for example in examples:
        by_shape.setdefault(example.views[0].latent.shape, []).append(example)
    if len(by_shape) == 1:
        return list(examples)
    chosen = examples[integer(len(examples), generator)]
    return by_shape[chosen.views[0].latent.shape]


def _caption(captions: Sequence[str], config: TuningSettings, generator: torch.Generator, reach: Reach | None) -> str:
    if config.template_share and float(torch.rand(1, generator=generator)) < config.template_share:
        captions = TEMPLATES
    caption = captions[integer(len(captions), generator)]
    if config.shuffle_captions and movable_parts(caption) > 1:
        order = torch.randperm(movable_parts(caption), generator=generator).tolist()
        caption = shuffled_caption(caption, order) if reach is None else reach.shuffled(caption, order)
    return caption


def _rounds(count: int, batch: int, generator: torch.Generator) -> list[int]:
    """Return `batch` indices in shuffled rounds, so that no picture is left out for long."""
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-batch // count))]
    return [int(i) for i in torch.cat(rounds)[:batch]]
