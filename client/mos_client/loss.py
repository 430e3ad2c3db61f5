"""The noise loss of one batch."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss

from mos_common.attention import TextMemory
from mos_common.base_model import BaseModel
from mos_common.errors import BaseModelError


def noise_loss(
    base: BaseModel,
    scheduler: Any,
    latents: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    times: Int[Tensor, " n"],
    features: Float[Tensor, "n layers tokens width"],
) -> Float[Tensor, ""]:
    """E‖ε − ε_θ(x_t, t, text)‖², or with v = √ᾱ·ε − √(1−ᾱ)·x in place of ε where the base predicts v.

    Raises:
        BaseModelError: the base predicts something else.

    """
    noisy = scheduler.add_noise(latents, noise, times)
    predicted = base.unet(noisy, times, encoder_hidden_states=TextMemory(features)).sample
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = scheduler.get_velocity(latents, noise, times)
    else:
        raise BaseModelError(f"{base.name} predicts {kind!r}; tuning knows 'epsilon' and 'v_prediction'")
    return mse_loss(predicted.float(), target.float())


def spread_times(count: int, total: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """`count` times from 0 to total-1, one in each of `count` equal parts, in random order: less noise than independent draws."""
    offset = torch.rand(1, generator=generator)
    times = (((offset + torch.arange(count) / count) % 1) * total).long()
    return times[torch.randperm(count, generator=generator)]
