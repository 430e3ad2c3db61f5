"""Memory and minutes of a tuning before it begins: counted on shapes, and timed on one step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from mos_client.pictures.captions import TEMPLATES
from mos_client.pictures.examples import Encoded, Example
from mos_client.tuning.judgement import Judged
from mos_client.tuning.loop import Tuning
from mos_client.tuning.memory_plan import GIB, Plan, step_gib
from mos_client.tuning.watch import CLASS_SEEDS, STEPS
from mos_common.drawing import Drawing, draw
from mos_common.prompt_grammar import as_text
from mos_common.prompts import WATCHED


def estimate(judged: Judged) -> Iterator[str]:
    """Yield a line about memory and one about minutes.

    Memory is counted by the plan. Minutes are a real step of one part of a batch, and one real
    denoising step of an evaluation, timed here and multiplied.
    """
    plan, base, settings = judged.plan, judged.base, judged.settings
    gib = step_gib(base, plan.micro_batch, settings.rank, plan.checkpointing) if plan.gib is None else plan.gib
    yield f"memory: about {gib:.1f} GB by a count of one step, {replace(plan, gib=None)}{_beyond(judged, gib)}"
    step_s, evaluation_s = time_step(judged), time_evaluation(judged)
    evaluations = settings.steps // settings.watch_every if settings.watch_every else 0
    seconds = settings.steps * step_s + evaluations * evaluation_s
    watched = f" and {evaluations} evaluations of {evaluation_s:.1f} s" if evaluations else ""
    yield (
        f"time: about {_minutes(seconds)} on {base.device.type}, {settings.steps} steps of {step_s:.2f} s{watched}, "
        "by timing one of each; other programs slow it down"
    )


def time_step(judged: Judged) -> float:
    """Return the seconds of one optimiser step, from one part of a batch on random latents."""
    base, plan = judged.base, judged.plan
    # On a CPU the time grows with the pictures, and one picture is enough to know it.
    pictures = 1 if base.device.type == "cpu" else plan.micro_batch
    config = replace(judged.settings, batch=pictures, steps=2)
    side = base.picture_size // base.pixels_per_latent
    latent = torch.randn(base.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    example = Example((Encoded(latent),), (TEMPLATES[0],))
    timed = Plan(pictures, plan.checkpointing, plan.eight_bit)
    steps = Tuning(base, judged.request.class_word, [example], config, timed).steps()
    next(steps)  # the first one allocates memory and chooses kernels
    return _seconds(base.device, lambda: next(steps)) * judged.settings.batch / pictures


def time_evaluation(judged: Judged) -> float:
    """Return the seconds of one evaluation, from one denoising step of one of its drawings."""
    if not judged.settings.watch_every:
        return 0.0

    def drawing(steps: int) -> float:
        prompt = as_text(f"a {judged.request.class_word}")
        return _seconds(judged.base.device, lambda: draw(judged.base, [prompt], [0], how=Drawing(steps=steps)))

    drawing(1)
    one, two = drawing(1), drawing(2)
    step_s = max(two - one, 0.0)
    drawn_s = max(one - step_s, 0.0) + STEPS * step_s
    # The class word is drawn once, at the first evaluation, with several seeds.
    rounds = max(1, judged.settings.steps // judged.settings.watch_every)
    return len(WATCHED) * drawn_s * (1 + len(CLASS_SEEDS) / rounds)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def _beyond(judged: Judged, gib: float) -> str:
    """Return a warning if a CPU's machine has less memory than is needed, else nothing."""
    if judged.base.device.type != "cpu" or not hasattr(os, "sysconf"):
        return ""
    has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return f"; this machine has {has:.1f} GB: give --vram {has / 2:.0f} for a smaller plan" if gib > has else ""


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
