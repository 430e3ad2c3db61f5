"""Drawing: one denoising loop for prompts, layer-wise words, regions and recording."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mos_common.attention import WatchedWords, conditioned
from mos_common.base_model import Base
from mos_common.conditioning import Conditioning, read_prompts
from mos_common.control.condition import Control, check_controls
from mos_common.control.residuals import Residuals
from mos_common.drawing_steps import AfterStep, Finiteness, OnLatents, Step, check_picture
from mos_common.errors import RequestError
from mos_common.libraries import quiet_libraries
from mos_common.progress import CountProgress
from mos_common.regions import Region
from mos_common.samplers import sampler_for, stepper
from mos_common.settings import setting
from mos_common.words import Vocabulary
from mos_common.written_prompts import Phase, read_written_prompts

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from mos_common.own.attach import OwnChanges, Placed

Seed = int | torch.Generator  # a generator is used from where it stands


@dataclass(frozen=True)
class Drawing:
    """Settings of a drawing; None means the base's own value."""

    steps: int = setting(20, "denoising steps")
    guidance: float | None = setting(None, "classifier-free guidance scale (1: no guidance); by default the base's own")
    height: int | None = setting(None, "height of the picture; by default the base's own", unit="pixels")
    width: int | None = setting(None, "width of the picture; by default the base's own", unit="pixels")
    negative: str = setting("", "what not to draw: the unconditional text of guidance")
    scheduler: str | None = setting(None, "a diffusers scheduler that suits the base; by default the base's own")
    vae_float32: bool = setting(False, "decode in float32 whatever the precision, for a VAE that overflows")

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
            RequestError: they are not whole cells of the base's latents.

        """
        unit = base.pixels_per_latent
        height, width = (base.picture_size if side is None else side for side in (self.height, self.width))
        if height % unit or width % unit:
            raise RequestError(f"{width} x {height} pixels: this base model draws sizes that are multiples of {unit}")
        return height, width


def draw(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[Seed],
    *,
    vocabulary: Vocabulary | None = None,
    regions: Sequence[Region] = (),
    how: Drawing | None = None,
    on_step: CountProgress | None = None,
    on_latents: OnLatents | None = None,
    own: OwnChanges | None = None,
    controls: Sequence[Control] = (),
    scheduler: SchedulerMixin | None = None,
    after_step: AfterStep | None = None,
    decoded: bool = True,
) -> Float[Tensor, "pictures channels height width"]:
    """Draw one picture per prompt and seed: in [-1, 1], float32 on the CPU.

    Prompts may have weights and change on the way (`prompt_grammar`). Regions have their own
    prompts and apply to every picture. The noise is generated on the CPU, so a seed gives the same
    picture on every device. `on_latents` is shown each step of a sampler, and changes nothing;
    `after_step` may. `own` are the concepts' own changes, which act where they are named.
    `controls` are pictures that every drawing of the batch follows. `scheduler` is a fresh one with
    its steps set, in place of the one that `how` names. Without `decoded`, the latents are
    returned.

    Raises:
        RequestError: a prompt names an unknown concept, a size does not fit the base or an adapter,
            or a control names a region that is not there.
        DrawingError: the latents of a step or the picture are not finite.

    """
    how, finite = how or Drawing(), Finiteness()
    height, width = how.sized_for(base)
    check_controls(controls, regions, height, width)
    scheduler = scheduler or scheduler_for(base, how)

    def seen(step: Step) -> None:
        finite.look(step)
        if on_latents:
            on_latents(step)

    with torch.inference_mode():
        phases = read_written_prompts(
            base,
            prompts,
            vocabulary or {},
            steps=how.steps,
            evaluations=len(scheduler.timesteps),
            guidance=base.preset.guidance if how.guidance is None else how.guidance,
            negative=how.negative,
            regions=regions,
            size=(height // base.pixels_per_latent, width // base.pixels_per_latent),
        )
        generators = generators_of(seeds)
        noise = noise_from(base, generators, height, width)
        placing = own.placed(prompts, regions, vocabulary or {}, phases, how.steps) if own else nullcontext()
        with placing as placed:
            latents = denoise(
                base,
                noise,
                phases,
                scheduler,
                how.steps,
                generators,
                on_step,
                seen,
                own=placed,
                after_step=after_step,
                residuals=Residuals(base, controls, (height, width)) if controls else None,
            )
        finite.check(base.dtype)
        return decode(base, latents, how) if decoded else latents


def decode(base: Base, latents: Float[Tensor, "n c h w"], how: Drawing) -> Float[Tensor, "n 3 height width"]:
    """Decode latents into pictures, as `draw` returns them.

    Raises:
        DrawingError: the pictures are not finite.

    """
    own = next(base.vae.parameters()).dtype
    wanted = torch.promote_types(own, torch.float32) if how.vae_float32 else own
    nn.Module.to(base.vae, dtype=wanted)
    try:
        pictures = base.decode_latents(latents)
    finally:
        nn.Module.to(base.vae, dtype=own)  # widened and narrowed again, every weight has its bits back
    check_picture(pictures, wanted)
    return pictures


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
    """Draw plain texts and return the latents without decoding them, as fusion records them.

    Nothing in the prompts is grammar. Every batch that the UNet reads ends with the rows of the
    prompts; guidance puts the same number of unconditional rows before them.

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
        size=(height // base.pixels_per_latent, width // base.pixels_per_latent),
    )
    generators = generators_of(seeds)
    noise = noise_from(base, generators, height, width)
    return denoise(base, noise, conditioning, scheduler, how.steps, generators, on_step)


@torch.no_grad()
def denoise(
    base: Base,
    noise: Float[Tensor, "n c h w"],
    conditioning: Conditioning | Sequence[Phase],
    scheduler: SchedulerMixin,
    steps: int,
    generators: Sequence[torch.Generator],
    on_step: CountProgress | None = None,
    on_latents: OnLatents | None = None,
    watched: WatchedWords | None = None,
    own: Placed | None = None,
    after_step: AfterStep | None = None,
    residuals: Residuals | None = None,
) -> Float[Tensor, "n c h w"]:
    """Turn standard normal noise into the latents of pictures.

    Keys and values of the text are computed in the first step of a phase and reused in its others.
    `after_step` may change the latents on the way, and stop.
    A sampler that adds noise takes it from `generators`, one for each picture. `watched` has the
    attention of the step that `on_step` tells of. `residuals` are what pictures add to the UNet.
    """
    with quiet_libraries():
        scheduler.set_timesteps(steps, device=base.device)
    take, times = stepper(scheduler, generators), scheduler.timesteps
    latents: Tensor = noise * scheduler.init_noise_sigma
    phases = [Phase(0, conditioning)] if isinstance(conditioning, Conditioning) else list(conditioning)
    ends = [*(phase.begins for phase in phases[1:]), len(times)]
    watched = own.watched if own else watched
    for phase, end in zip(phases, ends, strict=True):
        read = phase.conditioning
        guided = read.unconditional_rows > 0
        with conditioned(base, read, watched=watched, keep=True, residuals=residuals) as unet:
            for number in range(phase.begins, end):
                t = times[number]
                rows = torch.cat([latents, latents]) if guided else latents
                scaled = scheduler.scale_model_input(rows, t)
                predicted = unet.predict(scaled.to(base.dtype), t, number / len(times)).to(latents.dtype)
                if guided:
                    unconditional, conditional = predicted.chunk(2)
                    predicted = unconditional + read.guidance * (conditional - unconditional)
                latents, goes_on = take(predicted, t, latents), True
                if after_step:
                    latents, goes_on = after_step(number, t, latents)
                if own:
                    own.end_step(number + 1, len(times))
                if on_latents:
                    seen, kind = scaled[: len(latents)], scheduler.config.prediction_type
                    on_latents(
                        Step(number + 1, len(times), latents, seen, predicted, kind, t, scheduler.alphas_cumprod)
                    )
                if on_step:
                    on_step(number + 1, len(times))
                if not goes_on:
                    return latents
    return latents


def generators_of(seeds: Sequence[Seed]) -> list[torch.Generator]:
    """Return one generator per seed, on the CPU: the same numbers for every device and batch."""
    return [seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed) for seed in seeds]


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
