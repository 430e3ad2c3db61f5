"""Three ways to tune on the same model, pictures, batches and precision, as step functions.

`FLOOR` is beside them, and tunes nothing: the frozen networks run forwards, and backwards to the
words, as every ED-LoRA must that encodes a batch once for each cross-attention layer. No pairs, no
optimiser, no average. What it takes bounds how much faster a step can become.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from straightforward import SingleEmbedding, Straightforward
from torch import Tensor

from mos_client.pictures.captions import TEMPLATES
from mos_client.pictures.examples import Encoded, Example
from mos_client.tuning.batches import next_batch
from mos_client.tuning.loop import Tuning
from mos_client.tuning.memory_plan import Plan
from mos_client.tuning.settings import TuningSettings
from mos_common.base_model import Base

OURS, STRAIGHTFORWARD, SINGLE = "ours", "straightforward", "single embedding"
ALL = (OURS, STRAIGHTFORWARD, SINGLE)
FLOOR = "floor"
MANY_STEPS = 10_000
PLACES = ("beach", "street", "grass", "snow", "table", "roof", "boat", "sofa")
OWN_CAPTIONS = tuple(f"photo of a V on the {place}" for place in PLACES)


@dataclass(frozen=True)
class Shown:
    """Pictures, made beforehand for all contestants, and their latents and captions."""

    pictures: Tensor
    examples: list[Example]


def shown(base: Base, count: int, *, own_captions: bool) -> Shown:
    """Return random pictures with own captions, or the templates of a folder without captions."""
    size, generator = base.picture_size, torch.Generator().manual_seed(1)
    pictures = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    latents = [base.encode_pictures(picture[None])[0].float().cpu() for picture in pictures]
    captions = [(OWN_CAPTIONS[i % len(OWN_CAPTIONS)],) if own_captions else TEMPLATES for i in range(count)]
    examples = [Example((Encoded(latent),), texts) for latent, texts in zip(latents, captions, strict=True)]
    return Shown(pictures, examples)


def contestant(
    name: str, base: Base, what: Shown, config: TuningSettings, plan: Plan | None = None
) -> Callable[[], float]:
    """Return a function that takes the next step and returns its loss.

    All contestants see the same batches in the same order.
    """
    tuning = Tuning(base, "cat", what.examples, config, plan)
    if name == OURS:
        steps = tuning.steps()
        return lambda: next(steps).loss

    rates = (config.learning_rate_words, config.learning_rate_text, config.learning_rate_unet)
    generator, total = tuning.generator, int(base.scheduler.config.num_train_timesteps)
    if name == FLOOR:
        scheduler = DDPMScheduler.from_config(base.scheduler.config, clip_sample=False)

        def step_of_floor() -> float:
            assert tuning.words is not None
            tuning.words.grad = None
            batch = next_batch(what.examples, config, total, generator, tuning.reach)
            return tuning._add_gradients(scheduler, batch, 1.0)

        return step_of_floor

    if name == SINGLE:
        single = SingleEmbedding(base, "cat", rates)

        def step_of_single() -> float:
            batch = next_batch(what.examples, config, total, generator)
            return single.step(batch.latents, batch.captions, batch.noise, batch.times)

        return step_of_single

    A = {layer: A.detach() for layer, (A, _) in tuning.pairs.items()}
    straightforward = Straightforward(base, tuning.words.detach(), A, rates)
    latents = torch.stack([example.views[0].latent for example in what.examples])

    def step_of_straightforward() -> float:
        batch = next_batch(what.examples, config, total, generator)
        which = [int((latents == latent).flatten(1).all(dim=1).nonzero()) for latent in batch.latents]
        return straightforward.step(what.pictures[which], batch.captions, batch.noise, batch.times)

    return step_of_straightforward
