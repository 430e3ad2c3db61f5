"""What is seen of a drawing on its way: estimates, and the step that is not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_common.base_model import load_base
from mos_common.drawing import Drawing, decode, draw
from mos_common.drawing_steps import Finiteness, Step, check_picture
from mos_common.errors import DrawingError

SCHEDULE = torch.linspace(0.99, 0.01, 100)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_estimate_is_the_picture_that_the_noise_was_added_to(kind):
    x, noise = torch.randn(2, 4, 8, 8, dtype=torch.float64).unbind(0)[0], torch.randn(4, 8, 8, dtype=torch.float64)
    kept = SCHEDULE[60].double()
    read = kept.sqrt() * x + (1 - kept).sqrt() * noise
    said = {"epsilon": noise, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * x, "sample": x}[kind]
    step = Step(1, 2, read[None], read[None], said[None], kind, torch.tensor(60), SCHEDULE)
    torch.testing.assert_close(step.estimate()[0], x)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_the_estimate_becomes_the_picture_whatever_the_sampler_keeps(tiny, name):
    """Euler keeps latents of another scale than the others; what the UNet reads is not."""
    seen: list[Step] = []
    how = Drawing(steps=8, guidance=2.0, scheduler=name)
    picture = draw(tiny, ["a red car"], [0], how=how, on_latents=seen.append)
    with torch.no_grad():
        distances = [float((tiny.decode_latents(step.estimate()) - picture).abs().mean()) for step in seen]
    assert distances[-1] < 0.03
    assert distances[-1] < distances[0] / 3
    assert [step.number for step in seen] == list(range(1, len(seen) + 1))
    assert {step.total for step in seen} == {len(seen)}


def test_whoever_looks_changes_nothing(tiny):
    how = Drawing(steps=3)
    looked = draw(tiny, ["a cat"], [0], how=how, on_latents=lambda step: step.estimate())
    assert torch.equal(looked, draw(tiny, ["a cat"], [0], how=how))


def test_the_first_step_that_is_not_finite_is_named(tiny):
    finite, latents = Finiteness(), torch.zeros(1, 4, 8, 8)
    for number in (1, 2, 3, 4):
        if number == 3:
            latents = latents.clone()
            latents[0, 0, 0, 0] = torch.nan
        finite.look(Step(number, 4, latents, latents, latents, "epsilon", torch.tensor(5), SCHEDULE))
    with pytest.raises(DrawingError, match=r"from step 3 of 4 on.*--dtype bfloat16 or float32.*float16"):
        finite.check(torch.float16)
    with pytest.raises(DrawingError, match=r"try a lower --guidance"):
        finite.check(torch.float32)


def test_a_drawing_that_overflows_names_its_step(tiny):
    with pytest.raises(DrawingError, match=r"not finite from step 2 of 3 on"):
        draw(tiny, ["a cat"], [0], how=Drawing(steps=3, guidance=1e38))


def test_a_vae_that_overflows_is_told_from_latents_that_do(tiny):
    broken = replace(tiny, vae=load_base("tiny", device="cpu").vae.half())
    broken.vae.decoder.conv_in.weight.data.mul_(1e6)
    with pytest.raises(
        DrawingError, match=r"picture is not finite, though all its latents are.*--set vae_float32=true"
    ):
        draw(broken, ["a cat"], [0], how=Drawing(steps=1))
    with pytest.raises(DrawingError, match=r"decoded in float32\), so there is no picture to write: try a lower"):
        check_picture(torch.tensor([torch.inf]), torch.float32)


def test_a_vae_in_float32_decodes_what_float16_does_not_and_has_its_bits_back(tiny):
    """The factor is beyond float16 inside and undone before the end: float32 gives the picture."""
    half = replace(tiny, vae=load_base("tiny", device="cpu").vae.half())
    before = {name: value.clone() for name, value in half.vae.state_dict().items()}
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        found = decode(half, latents, Drawing(vae_float32=True))
        wide = replace(tiny, vae=load_base("tiny", device="cpu").vae.half().float())
        assert torch.equal(found, decode(wide, latents, Drawing()))
    after = half.vae.state_dict()
    assert all(value.dtype == torch.float16 and torch.equal(value, before[name]) for name, value in after.items())
