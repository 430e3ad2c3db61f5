"""Samplers: the schedulers of diffusers that turn noise into latents, and which suit a base.

A sampler suits if it follows the noise schedule that the base was trained with, runs here, and
draws all its noise from the generators it is given: one seed is one picture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mos_common.errors import BaseModelError, RequestError
from mos_common.fingerprint import noise_schedule
from mos_common.fingerprint_keys import IN, SCHEDULER
from mos_common.libraries import first_line, quiet_libraries

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

    from mos_common.base_model import Base

KNOWN = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM",
        "DDIMParallel",
        "DDPM",
        "DDPMParallel",
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "EulerAncestralDiscrete",
        "EulerDiscrete",
        "HeunDiscrete",
        "KDPM2AncestralDiscrete",
        "KDPM2Discrete",
        "LCM",
        "LMSDiscrete",
        "PNDM",
        "SASolver",
        "TCD",
        "UniPCMultistep",
    )
)
_OTHERS = f"; known: {', '.join(sorted(name.removesuffix('Scheduler') for name in KNOWN))}"
TRIED = 20  # steps of the trial: those of an ordinary drawing
Stepper = Callable[[Tensor, Tensor, Tensor], Tensor]


def scheduler_class(name: str, kind: str) -> Any:
    """Return the class of the scheduler that the base `name` asks for.

    Raises:
        BaseModelError: it is none, or does not suit any base.

    """
    import diffusers

    found = getattr(diffusers, kind, None)
    if not kind.endswith("Scheduler") or not inspect.isclass(found):
        raise BaseModelError(f"{name} names {kind} as its scheduler, which is not a scheduler of diffusers")
    if why := _why_unusable(found):
        raise BaseModelError(f"{name} cannot be used: its scheduler is {kind}, which {why}{_OTHERS}")
    return found


def judge_own_sampler(name: str, scheduler: SchedulerMixin) -> None:
    """Check that the scheduler of the base `name` follows all its settings, and runs.

    Raises:
        BaseModelError: it does not; the message says why.

    """
    kind, config = type(scheduler), scheduler.config
    own = inspect.signature(kind.__init__).parameters
    foreign = [key for key, why in SCHEDULER.items() if why == IN and config.get(key) and key not in own]
    if foreign:
        raise BaseModelError(
            f"{name} cannot be used: its scheduler has {foreign[0]} = {config[foreign[0]]}, which {kind.__name__} does "
            "not follow"
        )
    if why := _why_not_run(scheduler):
        raise BaseModelError(f"{name} cannot be used: its scheduler is {kind.__name__}, which {why}")


def sampler_for(base: Base, name: str | None, steps: int) -> SchedulerMixin:
    """Return a fresh copy of the base's own scheduler, or of the compatible one called `name`.

    Raises:
        RequestError: the scheduler is unknown, does not suit the base, or cannot take that many
            steps; the message lists those that suit.

    """
    with quiet_libraries():
        if name is None:
            chosen = type(base.scheduler).from_config(base.scheduler.config)
        else:
            compatible = {kind.__name__: kind for kind in base.scheduler.compatibles}
            why = _why_unsuited(base, compatible[name]) if name in compatible else ""
            if name not in compatible or why:
                suited = [other for other, kind in sorted(compatible.items()) if not _why_unsuited(base, kind)]
                said = f"scheduler {name} {why}" if why else f"unknown scheduler {name!r} for {base.name}"
                raise RequestError(f"{said}; known: {', '.join(suited)}")
            chosen = _copied(base, compatible[name])
        return _with_steps(chosen, steps)


def sampler_like(base: Base, scheduler: SchedulerMixin, steps: int) -> SchedulerMixin:
    """Return a fresh copy of a scheduler that somebody made, with its own settings, if it suits.

    It clips nothing to [-1, 1], which is for pixels and not for latents.

    Raises:
        RequestError: it does not suit the base, or cannot take that many steps; the message says
            why.

    """
    kind = type(scheduler)
    with quiet_libraries():
        why = _why_unusable(kind)
        if not why and noise_schedule(scheduler) != noise_schedule(base.scheduler):
            why = f"does not follow the noise schedule of {base.name}: make it by from_config(pipe.scheduler.config)"
        if not why:
            settings = {**scheduler.config, "clip_sample": False}
            why = _why_not_run(chosen := kind.from_config(settings))
        if why:
            raise RequestError(f"scheduler {kind.__name__} {why}")
        return _with_steps(chosen, steps)


def scheduler_name(base: Base, scheduler: SchedulerMixin) -> str | None:
    """Return the name that says all of a scheduler: "" for the base's own; None if none does.

    One made by `from_config` of the base's configuration, and nothing else, is known by its name.
    """
    kind, own = type(scheduler), base.scheduler
    if scheduler is own:
        return ""
    if kind not in own.compatibles:
        return None
    with quiet_libraries():
        same = _settings_of(kind.from_config(own.config)) == _settings_of(scheduler)
    return kind.__name__ if same else None


def _settings_of(scheduler: SchedulerMixin) -> dict[str, Any]:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def _with_steps(scheduler: SchedulerMixin, steps: int) -> SchedulerMixin:
    try:
        scheduler.set_timesteps(steps)
    except Exception as error:  # what a scheduler demands of the number of steps is its own
        raise RequestError(f"{steps} steps with {type(scheduler).__name__}: {first_line(error)}") from error
    return scheduler


def stepper(scheduler: SchedulerMixin, generators: Sequence[torch.Generator]) -> Stepper:
    """Return the function (prediction, time, latents) -> latents of one step of a sampler.

    Its noise comes from `generators`, one for each row. Whatever else a step accepts has the value
    that diffusers' pipelines give it.
    """
    given: dict[str, Any] = {"generator": list(generators), "eta": 0.0}
    accepted = inspect.signature(scheduler.step).parameters
    arguments = {key: value for key, value in given.items() if key in accepted}

    def step(predicted: Tensor, time: Tensor, latents: Tensor) -> Tensor:
        stepped: Tensor = scheduler.step(predicted, time, latents, **arguments).prev_sample
        return stepped

    return step


def _copied(base: Base, kind: Any) -> SchedulerMixin:
    # Some schedulers clip to [-1, 1] by default, which is for pixels and not for latents.
    return kind.from_config({**base.scheduler.config, "clip_sample": False})


def _why_unsuited(base: Base, kind: Any) -> str:
    if why := _why_unusable(kind):
        return why
    try:
        scheduler = _copied(base, kind)
    except Exception as error:  # a setting of the base's own scheduler that this one does not have
        return f"does not take the settings of {base.name}'s own: {first_line(error)}"
    if noise_schedule(scheduler) != noise_schedule(base.scheduler):
        return f"does not follow the noise schedule of {base.name}"
    return _why_not_run(scheduler)


def _why_unusable(kind: Any) -> str:
    from diffusers import SchedulerMixin

    if kind.__name__ not in KNOWN:
        return "samples another kind of model (flow matching, EDM, pixels), or draws noise that no seed decides"
    if not issubclass(kind, SchedulerMixin):  # a stand-in of diffusers for what is not installed
        return f"needs {' and '.join(kind._backends)} installed"
    return ""


def _why_not_run(scheduler: SchedulerMixin) -> str:
    """Try all steps of a drawing on small latents."""
    generator = torch.Generator().manual_seed(0)
    tried = type(scheduler).from_config(scheduler.config)
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    try:
        tried.set_timesteps(TRIED)
        step = stepper(tried, [generator])
        latents = latents * tried.init_noise_sigma
        for time in tried.timesteps:
            latents = step(tried.scale_model_input(latents, time) / 2, time, latents)
    except Exception as error:  # its settings may exclude each other, or need what is not installed
        return f"cannot run with its settings: {first_line(error)}"
    return ""
