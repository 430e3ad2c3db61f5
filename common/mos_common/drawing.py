"""Drawing: one denoising loop for plain prompts, layer-wise words, regions, and recording under fusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.attention import RegionText, TextMemory, layerwise_attention, predict
from mos_common.base_model import Base
from mos_common.errors import RequestError
from mos_common.regions import Region
from mos_common.settings import setting
from mos_common.words import Vocabulary, encode_pooled, encode_prompts, encode_token_ids, tokenise

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Drawing:
    """How to draw: sizes in pixels (0: the base's own), `guidance` 0 for the base's own scale, 1 for none."""

    steps: int = setting(20, "denoising steps")
    guidance: float = setting(0.0, "scale of classifier-free guidance; 1: none, 0: the base's own")
    height: int = setting(0, "height of the picture; 0: the base's own", unit="pixels")
    width: int = setting(0, "width of the picture; 0: the base's own", unit="pixels")
    negative: str = setting("", "what not to draw")
    scheduler: str = setting("", "a scheduler that the base is compatible with, by its name; default: the base's own")

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise RequestError(f"{self.steps} steps: expected 1 to 1000")
        if self.guidance < 0 or self.height < 0 or self.width < 0:
            raise RequestError("guidance, height and width cannot be negative")

    def sized_for(self, base: Base) -> tuple[int, int]:
        """(height, width) in pixels.

        Raises:
            RequestError: they are no multiple of what the base's UNet can halve.

        """
        unit = base.size_unit
        height, width = self.height or base.picture_size, self.width or base.picture_size
        if height % unit or width % unit:
            raise RequestError(f"{width} x {height} pixels: this base model draws sizes that are multiples of {unit}")
        return height, width


def draw(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    vocabulary: Vocabulary | None = None,
    regions: Sequence[Region] = (),
    how: Drawing | None = None,
    on_step: Progress | None = None,
) -> Float[Tensor, "pictures 3 height width"]:
    """One picture per prompt and seed, in [-1, 1], float32 on the CPU.

    Regions have prompts of their own and hold for every picture. The noise is drawn on the CPU, so a seed means the same
    picture on every device.

    Raises:
        RequestError: a prompt names an unknown concept, or a size does not fit the base.

    """
    how = how or Drawing()
    height, width = how.sized_for(base)
    guidance = how.guidance or base.preset.guidance
    words = vocabulary or {}
    with torch.inference_mode(), layerwise_attention(base):
        texts = [how.negative] * len(prompts) + list(prompts) if guidance != 1 else list(prompts)
        memory = read_prompts(base, texts, words)
        of_regions = encode_prompts(base, [region.prompt for region in regions], words) if regions else ()
        memory.regions = [RegionText(region, found) for region, found in zip(regions, of_regions, strict=True)]
        memory.first_regional_row, memory.aspect = len(texts) - len(prompts), width / height
        latents = initial_noise(base, seeds, height, width)
        return base.decode_latents(
            denoise(base, latents, memory, scheduler_for(base, how), how.steps, guidance, on_step)
        )


def read_prompts(base: Base, prompts: Sequence[str], vocabulary: Vocabulary) -> TextMemory:
    """What the UNet reads of some prompts while they are drawn: keys and values are computed once, at the first step."""
    texts = [tokenise(base, prompt, vocabulary) for prompt in prompts]
    pooled = encode_pooled(base, texts, vocabulary)
    return TextMemory(encode_token_ids(base, texts, vocabulary), keep=True, pooled=pooled)


def denoise(
    base: Base,
    latents: Float[Tensor, "n c h w"],
    memory: TextMemory,
    scheduler: Any,
    steps: int,
    guidance: float,
    on_step: Progress | None = None,
) -> Float[Tensor, "n c h w"]:
    """Latents of finished pictures. The caller has `layerwise_attention` on.

    With guidance other than 1 the memory holds the unconditional texts first, then the prompts.
    """
    scheduler.set_timesteps(steps, device=base.device)
    latents = latents * scheduler.init_noise_sigma
    for step, t in enumerate(scheduler.timesteps):
        twice = torch.cat([latents, latents]) if guidance != 1 else latents
        scaled = scheduler.scale_model_input(twice, t).to(base.dtype)
        predicted = predict(base, scaled, t, memory).to(latents.dtype)
        if guidance != 1:
            unconditional, conditional = predicted.chunk(2)
            predicted = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(predicted, t, latents).prev_sample
        if on_step:
            on_step(step + 1, len(scheduler.timesteps))
    return latents


def initial_noise(base: Base, seeds: Sequence[int], height: int, width: int) -> Float[Tensor, "n c h w"]:
    """Standard normal latents, one generator per seed on the CPU, float32 on the base's device."""
    shape = (int(base.unet.config.in_channels), height // base.pixels_per_latent, width // base.pixels_per_latent)  # type: ignore[union-attr, arg-type]
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(noise).to(base.device)


def scheduler_for(base: Base, how: Drawing) -> Any:
    """A fresh copy of the base's own scheduler, or the compatible one that `how` names.

    Raises:
        RequestError: no such scheduler for this base; the message lists those there are.

    """
    known = {kind.__name__: kind for kind in base.scheduler.compatibles}
    if how.scheduler and how.scheduler not in known:
        raise RequestError(f"scheduler {how.scheduler} does not go with this base; there is {', '.join(sorted(known))}")
    kind = known[how.scheduler] if how.scheduler else type(base.scheduler)
    # Latents are not pixels and must not be clipped to [-1, 1], which some schedulers do unless they are told.
    return kind.from_config({**base.scheduler.config, "clip_sample": False})
