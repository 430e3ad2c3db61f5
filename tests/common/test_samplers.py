"""Samplers: one seed is one picture, with every scheduler that suits a base."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch

from mos_common.base_model import Base, load_base
from mos_common.drawing import Drawing, draw, scheduler_for
from mos_common.errors import RequestError
from mos_common.samplers import KNOWN
from reference.miniatures import NOISE, by_diffusers, edit, of_version_two, write_miniature

# They differ by their step only: these draw noise in every step.
NOISY = {
    *("DDPMScheduler", "DDPMParallelScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "SASolverScheduler"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return write_miniature(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def with_sampler(tmp_path_factory):
    """Load the miniature with another scheduler as its own, once each."""
    made: dict[str, tuple[Path, Base]] = {}

    def base(kind: str, **settings: object) -> tuple[Path, Base]:
        key = f"{kind} {settings}"
        if key not in made:
            folder = tmp_path_factory.mktemp("base")
            write_miniature(folder, scheduler=getattr(diffusers, kind)(**NOISE, **settings))
            made[key] = folder, load_base(str(folder), device="cpu")
        return made[key]

    return base


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {}) for kind in sorted(KNOWN)),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DDIMScheduler", {"thresholding": True}),
    ],
    ids=str,
)
def test_a_seed_is_one_picture_alone_and_in_company_and_the_one_of_diffusers(with_sampler, kind, settings):
    folder, base = with_sampler(kind, **settings)
    how = Drawing(steps=4, guidance=3.0)
    alone = draw(base, ["a cat"], [7], how=how)
    torch.rand(1)  # what else draws random numbers does not matter
    assert torch.equal(draw(base, ["a cat"], [7], how=how), alone)
    together = draw(base, ["dog", "a cat", ""], [1, 7, 2], how=how)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    theirs = by_diffusers(folder, "a cat", 7, num_inference_steps=4, guidance_scale=3.0)
    torch.testing.assert_close(alone, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(NOISY))
def test_the_noise_of_the_steps_belongs_to_the_seed(with_sampler, kind):
    """Pictures of one prompt from one start differ where only the noise of the steps differs."""
    _, base = with_sampler(kind)
    one, other = draw(base, ["cat", "cat"], [7, 8], how=Drawing(steps=4, guidance=1.0))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_a_compatible_scheduler_asked_for_by_name_draws_one_picture_or_is_refused_in_one_line(plain, kind):
    base, how = load_base(str(plain), device="cpu"), Drawing(steps=4, guidance=1.0, scheduler=kind)
    if kind not in {each.__name__ for each in base.scheduler.compatibles}:
        with pytest.raises(RequestError, match=f"unknown scheduler '{kind}'"):
            draw(base, ["cat"], [7], how=how)
        return
    assert torch.equal(*(draw(base, ["cat"], [7], how=how) for _ in range(2)))


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "DPMSolverSDEScheduler"])
def test_a_scheduler_that_does_not_suit_is_refused_with_those_that_do(plain, kind):
    base = load_base(str(plain), device="cpu")
    with pytest.raises(RequestError, match=f"scheduler {kind} samples another kind of model") as refused:
        scheduler_for(base, Drawing(scheduler=kind))
    said = str(refused.value)
    assert "known: DDIMScheduler, DDPMScheduler" in said
    assert kind not in said.partition("known:")[2]


def test_a_scheduler_that_does_not_follow_the_noise_schedule_is_refused(tmp_path):
    """PNDM knows no zero SNR: it would take another amount of noise away than was put in."""
    base = load_base(str(write_miniature(tmp_path, "sd2")), device="cpu")
    with pytest.raises(RequestError, match="scheduler PNDMScheduler does not follow the noise schedule of") as refused:
        scheduler_for(base, Drawing(scheduler="PNDMScheduler"))
    listed = str(refused.value).partition("known: ")[2].split(", ")
    assert {"DDIMScheduler", "EulerDiscreteScheduler"} <= set(listed)
    assert "HeunDiscreteScheduler" not in listed


def test_steps_that_a_scheduler_cannot_take_are_refused_in_one_line(with_sampler):
    """LCM takes at most as many as it was distilled for."""
    _, base = with_sampler("LCMScheduler")
    with pytest.raises(RequestError, match=r"60 steps with LCMScheduler: .*50") as refused:
        draw(base, ["cat"], [7], how=Drawing(steps=60))
    assert "\n" not in str(refused.value)


def test_a_scheduler_whose_library_is_not_installed_is_refused_in_one_line(plain, tmp_path):
    """LMS needs scipy; another process has none."""
    asking = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.partition(".")[0] == "scipy" else found(name, *more)
sys.modules["scipy"] = None
from mos_common.base_model import load_base
from mos_common.drawing import Drawing, scheduler_for
from mos_common.errors import MosError
for name, how in ((sys.argv[1], Drawing(scheduler="LMSDiscreteScheduler")), (sys.argv[2], Drawing())):
    try:
        scheduler_for(load_base(name, device="cpu"), how)
    except MosError as error:
        print(error)
"""
    own = write_miniature(tmp_path / "own", scheduler=diffusers.LMSDiscreteScheduler(**NOISE))
    done = subprocess.run(
        [sys.executable, "-c", asking, str(plain), str(own)], capture_output=True, text=True, check=True
    )
    asked, opened = done.stdout.splitlines()
    assert asked.startswith("scheduler LMSDiscreteScheduler needs ")
    assert "scipy" in asked.partition("known")[0]
    assert opened.startswith(f"{own} cannot be used: its scheduler is LMSDiscreteScheduler, which needs ")


def test_deprecations_of_schedulers_are_not_shown(tmp_path, recwarn):
    folder = write_miniature(tmp_path, scheduler=of_version_two())
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="DDIMScheduler", steps_offset=0)
    draw(load_base(str(folder), device="cpu"), ["cat"], [7], how=Drawing(steps=2))
    assert not recwarn.list
