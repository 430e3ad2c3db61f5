"""Drawing: one denoising loop for prompts, layer-wise words, regions and recording."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.attention import KeyValueCache, conditioned
from mos_common.base_model import Base
from mos_common.conditioning import Conditioning, read_prompts
from mos_common.errors import DrawingError, RequestError
from mos_common.libraries import quiet_libraries
from mos_common.progress import CountProgress
from mos_common.regions import Region
from mos_common.samplers import sampler_for, stepper
from mos_common.settings import setting
from mos_common.words import Vocabulary

if TYPE_CHECKING:
    from diffusers import SchedulerMixin


@dataclass(frozen=True)
class Drawing:
    """Settings of a drawing; None means the base's own value."""

    steps: int = setting(20, "denoising steps")
    guidance: float | None = setting(None, "classifier-free guidance scale (1: no guidance); by default the base's own")
    height: int | None = setting(None, "height of the picture; by default the base's own", unit="pixels")
    width: int | None = setting(None, "width of the picture; by default the base's own", unit="pixels")
    negative: str = setting("", "what not to draw: the unconditional text of guidance")
    scheduler: str | None = setting(None, "a diffusers scheduler that suits the base; by default the base's own")

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise RequestError(f"{self.steps} steps: expected 1 to 1000")
        if self.guidance is not None and not 0 <= self.guidance < math.inf:
            raise RequestError(f"guidance {self.guidance}: expected a number of at least 0 (1 means no guidance)")
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None and side < 1:
                raise RequestError(f"{name} {side}: expected a number of pixels; leave it out for the base's own")

    def sized_for(self, base: Base) -> tuple[int, int]:
        """Return (height, width) in pixels.

        Raises:
            RequestError: they are not multiples of the base's `size_unit`.

        """
        unit = base.size_unit
        height, width = (base.picture_size if side is None else side for side in (self.height, self.width))
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
    on_step: CountProgress | None = None,
) -> Float[Tensor, "pictures 3 height width"]:
    """Draw one picture per prompt and seed: in [-1, 1], float32 on the CPU.

    Regions have their own prompts and apply to every picture. The noise is generated on the CPU, so
    a seed gives the same picture on every device.

    Raises:
        RequestError: a prompt names an unknown concept, or a size does not fit the base.
        DrawingError: the latents or the picture are not finite.

    """
    with torch.inference_mode():
        latents = draw_latents(base, prompts, seeds, vocabulary=vocabulary, regions=regions, how=how, on_step=on_step)
        _check_finite(latents, "latents", base.dtype)
        pictures = base.decode_latents(latents)
        _check_finite(pictures, "picture", next(base.vae.parameters()).dtype)
        return pictures


def _check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    """Refuse NaN and infinity, which image files would show as black."""
    if torch.isfinite(values).all():
        return
    wider = "" if dtype is torch.float32 else f"--dtype float32 (it was drawn in {str(dtype).removeprefix('torch.')}), "
    raise DrawingError(
        f"the {what} drawn is not finite, so there is no picture to write: try {wider}a lower --guidance or another "
        "--set scheduler; if it stays so, the concept's or the model's changes are too large"
    )


@torch.no_grad()
def draw_latents(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    vocabulary: Vocabulary | None = None,
    regions: Sequence[Region] = (),
    how: Drawing | None = None,
    on_step: CountProgress | None = None,
) -> Float[Tensor, "pictures c h w"]:
    """Draw as `draw` does, but return the latents without decoding them.

    Every batch that the UNet reads ends with the rows of the prompts; guidance puts the same number
    of unconditional rows before them.

    Raises:
        RequestError: as for `draw`.

    """
    how = how or Drawing()
    height, width = how.sized_for(base)
    scheduler = scheduler_for(base, how)
    conditioning = read_prompts(
        base,
        prompts,
        vocabulary or {},
        guidance=base.preset.guidance if how.guidance is None else how.guidance,
        negative=how.negative,
        regions=regions,
        aspect=width / height,
    )
    generators = generators_of(seeds)
    noise = noise_from(base, generators, height, width)
    return denoise(base, noise, conditioning, scheduler, how.steps, generators, on_step)


@torch.no_grad()
def denoise(
    base: Base,
    noise: Float[Tensor, "n c h w"],
    conditioning: Conditioning,
    scheduler: SchedulerMixin,
    steps: int,
    generators: Sequence[torch.Generator],
    on_step: CountProgress | None = None,
) -> Float[Tensor, "n c h w"]:
    """Turn standard normal noise into the latents of pictures.

    Keys and values of the text are computed in the first step and reused in the others. A sampler
    that adds noise takes it from `generators`, one for each picture.
    """
    with quiet_libraries():
        scheduler.set_timesteps(steps, device=base.device)
    take = stepper(scheduler, generators)
    latents: Tensor = noise * scheduler.init_noise_sigma
    guided = conditioning.unconditional_rows > 0
    with conditioned(base, conditioning, cache=KeyValueCache()) as unet:
        for step, t in enumerate(scheduler.timesteps):
            rows = torch.cat([latents, latents]) if guided else latents
            predicted = unet.predict(scheduler.scale_model_input(rows, t).to(base.dtype), t).to(latents.dtype)
            if guided:
                unconditional, conditional = predicted.chunk(2)
                predicted = unconditional + conditioning.guidance * (conditional - unconditional)
            latents = take(predicted, t, latents)
            if on_step:
                on_step(step + 1, len(scheduler.timesteps))
    return latents


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one generator per seed, on the CPU: the same numbers for every device and batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise_from(base: Base, generators: Sequence[torch.Generator], height: int, width: int) -> Float[Tensor, "n c h w"]:
    """Return standard normal latents, one picture per generator, on the base's device.

    They are float32, or float64 where the base is.
    """
    shape = (base.latent_channels, height // base.pixels_per_latent, width // base.pixels_per_latent)
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    return torch.stack(noise).to(base.device, torch.promote_types(base.dtype, torch.float32))


def initial_noise(base: Base, seeds: Sequence[int], height: int, width: int) -> Float[Tensor, "n c h w"]:
    """Return the noise that pictures of these seeds start from, as `noise_from` does."""
    return noise_from(base, generators_of(seeds), height, width)


def scheduler_for(base: Base, how: Drawing) -> SchedulerMixin:
    """Return a fresh copy of the base's own scheduler, or of the compatible one that `how` names.

    Raises:
        RequestError: the scheduler is unknown, does not suit the base, or cannot take as many
            steps; the message lists those that suit.

    """
    return sampler_for(base, how.scheduler, how.steps)
