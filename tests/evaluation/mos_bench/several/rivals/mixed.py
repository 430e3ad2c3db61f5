"""Ways that mix whole predictions of single models: LoRA Switch, LoRA Composite, and blending.

Each single model i, the base with concept i's changes in every layer, predicts the noise of the
whole picture; a step follows a weighted mean of them:

    ε(x, t) = Σi wi(t) · (εi⁻ + guidance · (εi⁺ - εi⁻))

    LoRA Switch      wi(t) = 1 for one model, which changes from step to step in turns, else 0
    LoRA Composite   wi(t) = 1/k for each of the k models
    blended          wi = the share of region i in a cell, and the base has the rest

The first two are of Zhong et al., Multi-LoRA Composition for Image Generation (2024). Theirs takes
the next LoRA after 5 of 200 steps; the same share of our steps is less than one, so here it is
every step. A LoRA counts in full, as in every other row of our tables (theirs: 0.8). The prompt
names all concepts, with the words of each. The third is how masks act in a tool that runs each LoRA
as a pass of its own, as ComfyUI's hooks do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mos_bench.several.models import Changes, Models
from mos_bench.several.scenes import Asked
from mos_common.attention import conditioned
from mos_common.base_model import Base
from mos_common.conditioning import Conditioning, read_prompts
from mos_common.drawing import Drawing, decode, generators_of, noise_from, scheduler_for
from mos_common.edlora import MergedWeights, attached
from mos_common.libraries import quiet_libraries
from mos_common.regions import shares
from mos_common.samplers import stepper

# The weight of each model in a step, a number or a map over the latents; who is left out has none.
Weights = Callable[[int], dict[int, float | Tensor]]


@dataclass(frozen=True)
class Single:
    """One concept's model, or the base: its changes, and the prompt as it reads it."""

    changes: Changes
    conditioning: Conditioning
    merged: MergedWeights = field(default_factory=MergedWeights, repr=False)


def switched(models: Models, asked: Asked, how: Drawing) -> Float[Tensor, "3 height width"]:
    """Draw by LoRA Switch: the models take turns, step by step."""
    readers = [_single(models, name, asked.prompt, asked, how) for name in asked.names]
    return _mixed(models.base, readers, lambda step: {step % len(readers): 1.0}, asked, how)


def composite(models: Models, asked: Asked, how: Drawing) -> Float[Tensor, "3 height width"]:
    """Draw by LoRA Composite: the mean of all models' guided predictions."""
    readers = [_single(models, name, asked.prompt, asked, how) for name in asked.names]
    return _mixed(models.base, readers, lambda _: {i: 1 / len(readers) for i in range(len(readers))}, asked, how)


def blended(models: Models, asked: Asked, how: Drawing) -> Float[Tensor, "3 height width"]:
    """Draw each region by its concept's prediction, and the rest by the base's."""
    regions = asked.regions
    readers = [_single(models, name, r.prompt, asked, how) for name, r in zip(asked.names, regions, strict=True)]
    placed = shares(regions, *_latents(models.base, asked, how)).to(models.base.device)
    weights: dict[int, float | Tensor] = dict(enumerate(placed))
    rest = 1 - placed.sum(dim=0)
    if float(rest.max()) > 1e-6:  # thirds and the like sum to 1 only to rounding
        weights[len(readers)] = rest
        readers.append(_single(models, None, asked.in_class_words, asked, how))
    return _mixed(models.base, readers, lambda _: weights, asked, how)


def _single(models: Models, name: str | None, prompt: str, asked: Asked, how: Drawing) -> Single:
    """Return a concept's model, or the base without a name, with the prompt as it reads it."""
    base, changes = models.base, models.changes(name) if name else {}
    with torch.inference_mode(), attached(base, changes):
        read = read_prompts(
            base,
            [prompt],
            {each: models.words[each] for each in asked.names},
            guidance=base.preset.guidance if how.guidance is None else how.guidance,
            negative=how.negative,
            size=_latents(base, asked, how),
        )
    return Single(changes, read)


def _latents(base: Base, asked: Asked, how: Drawing) -> tuple[int, int]:
    height, width = asked.sized(how).sized_for(base)
    return height // base.pixels_per_latent, width // base.pixels_per_latent


@torch.inference_mode()
def _mixed(
    base: Base, singles: Sequence[Single], weights: Weights, asked: Asked, how: Drawing
) -> Float[Tensor, "3 height width"]:
    """Denoise by the equation above."""
    how = asked.sized(how)
    generators, scheduler = generators_of([asked.seed]), scheduler_for(base, how)
    with quiet_libraries():
        scheduler.set_timesteps(how.steps, device=base.device)
    take = stepper(scheduler, generators)
    latents: Tensor = noise_from(base, generators, *how.sized_for(base)) * scheduler.init_noise_sigma
    for number, t in enumerate(scheduler.timesteps):
        scaled, predicted = scheduler.scale_model_input(latents, t), torch.zeros_like(latents)
        for i, weight in weights(number).items():
            predicted = predicted + weight * _guided(base, singles[i], scaled, t)
        latents = take(predicted, t, latents)
    return decode(base, latents, how)[0]


def _guided(base: Base, single: Single, scaled: Tensor, t: Tensor) -> Float[Tensor, "1 c h w"]:
    """Return εi⁻ + guidance · (εi⁺ - εi⁻)."""
    read = single.conditioning
    guided = read.unconditional_rows > 0
    rows = torch.cat([scaled, scaled]) if guided else scaled
    with attached(base, single.changes, single.merged), conditioned(base, read) as unet:
        predicted: Tensor = unet.predict(rows.to(base.dtype), t).to(scaled.dtype)
    if not guided:
        return predicted
    unconditional, conditional = predicted.chunk(2)
    return unconditional + read.guidance * (conditional - unconditional)
