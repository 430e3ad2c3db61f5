"""The loss of one batch: errors of the predicted noise, and where the concept's words attend.

Masked loss and attention regularisation come from the paper's repository, not from its text.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from mos_common.attention import ConditionedUNet, WatchedWords
from mos_common.errors import BaseModelError
from mos_common.shapes import feature_maps

Cells = Float[Tensor, "n h w"]


def noise_loss(
    unet: ConditionedUNet,
    scheduler: Any,
    latents: Float[Tensor, "n c h w"],
    noise: Float[Tensor, "n c h w"],
    times: Int[Tensor, " n"],
    weights: Cells | None = None,
) -> Float[Tensor, ""]:
    """Return E‖ε − ε_θ(x_t, t, text)‖², with v = √ᾱ·ε − √(1−ᾱ)·x for ε if the base predicts v.

    With `weights` the mean over the cells of a picture is weighted; pictures still count alike.

    Raises:
        BaseModelError: the base predicts something else.

    """
    noisy = scheduler.add_noise(latents, noise, times)
    predicted = unet.predict(noisy, times)
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "v_prediction":
        target = scheduler.get_velocity(latents, noise, times)
    else:
        raise BaseModelError(f"{unet.base.name} predicts {kind!r}; tuning knows 'epsilon' and 'v_prediction'")
    error = (predicted.float() - target.float()) ** 2
    if weights is None:
        return error.mean()
    per_cell = error.mean(dim=1)
    return ((per_cell * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp(min=1e-6)).mean()


def cell_weights(masks: Cells, background: float) -> Cells:
    """Return 1 inside the masks, `background` outside: 1 is the plain loss, 0 the masked loss."""
    return masks + background * (1 - masks)


def attention_loss(watched: WatchedWords, masks: Cells) -> Float[Tensor, ""]:
    """Return the mean over layers and cells of (a − m)² for V_class and a²(1 − m) for V_rand.

    So V_class attends to the whole concept, and V_rand to nothing outside it. a is a word's
    attention over the cells, as a share of its largest; m is the mask at that layer's size. The
    last watched word is V_class, those before it are V_rand.
    """
    losses = []
    sizes = feature_maps(masks.shape[1], masks.shape[2])
    for maps in watched.maps.values():
        mask = interpolate(masks[:, None], size=sizes[maps.shape[2]], mode="area").flatten(2)
        share = maps / maps.amax(dim=2, keepdim=True).clamp(min=1e-6)
        subject, adjectives = share[:, -1:], share[:, :-1]
        losses.append(((subject - mask) ** 2).mean())
        if adjectives.shape[1]:
            losses.append((adjectives**2 * (1 - mask)).mean())
    return torch.stack(losses).mean()


def spread_times(count: int, total: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return `count` times from 0 to `total` - 1, one in each of `count` equal parts, shuffled.

    They vary less than independent draws.
    """
    offset = torch.rand(1, generator=generator)
    times = (((offset + torch.arange(count) / count) % 1) * total).long()
    return times[torch.randperm(count, generator=generator)]
