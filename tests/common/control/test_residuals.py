"""What adapters add, against diffusers' own pipelines of T2I-Adapters and ControlNets."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_xl_adapter import StableDiffusionXLAdapterPipeline

from mos_common.base_model import Base
from mos_common.control.adapters import read_adapter
from mos_common.control.condition import Control
from mos_common.control.residuals import Residuals, text_for
from mos_common.drawing import Drawing, denoise, draw, generators_of, noise_from, scheduler_for
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_common.written_prompts import read_written_prompts
from reference.control_adapters import picture, write_controlnet, write_t2i

HOW = Drawing(steps=4, guidance=3.0, negative="cat", height=32, width=64)
PROMPT, SIZE = "a dog", (32, 64)
LEFT = Region("a cat", Box(0, 0, 0.5, 1))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def latents_of(base: Base, controls: list[Control], how: Drawing = HOW, regions: tuple[Region, ...] = ()):
    """Draw as `draw` does, without decoding."""
    scheduler, generators = scheduler_for(base, how), generators_of([1])
    phases = read_written_prompts(
        base,
        [PROMPT],
        {},
        steps=how.steps,
        evaluations=how.steps,
        guidance=how.guidance,
        negative=how.negative,
        regions=regions,
        size=(SIZE[0] // base.pixels_per_latent, SIZE[1] // base.pixels_per_latent),
    )
    residuals = Residuals(base, controls, SIZE) if controls else None
    noise = noise_from(base, generators, *SIZE)
    with torch.no_grad():
        return denoise(base, noise, phases, scheduler, how.steps, generators, residuals=residuals)


def by_diffusers(kind: type, base: Base, how: Drawing = HOW, **call: object) -> torch.Tensor:
    """Draw by a pipeline of diffusers."""
    parts = {"vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer, "unet": base.unet}
    parts |= {"scheduler": scheduler_for(base, how), "feature_extractor": None}
    if base.text_encoder_2 is None:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    else:
        parts |= {"text_encoder_2": base.text_encoder_2, "tokenizer_2": base.tokenizer_2}
        parts |= {"force_zeros_for_empty_prompt": base.force_zeros_for_empty_prompt}
    models = {name: call.pop(name) for name in ("adapter", "controlnet") if name in call}
    pipe = kind(**parts, **models)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPT,
        negative_prompt=how.negative,
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=how.steps,
        guidance_scale=how.guidance,
        latents=noise_from(base, generators_of([1]), *SIZE),
        output_type="latent",
        **call,
    ).images


@pytest.mark.parametrize("name", ["sixteen", "xl"])
def test_a_t2i_adapter_draws_as_diffusers_pipeline_does(name, request, tmp_path):
    base = request.getfixturevalue(name)
    adapter = read_adapter(write_t2i(tmp_path, xl=name == "xl"), base)
    kind = StableDiffusionXLAdapterPipeline if name == "xl" else diffusers.StableDiffusionAdapterPipeline
    theirs = by_diffusers(kind, base, adapter=adapter.model, image=picture(32, 64), adapter_conditioning_scale=0.7)
    ours = latents_of(base, [Control(adapter, picture(32, 64), 0.7)])
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (ours - latents_of(base, [])).abs().max() > 0.1


@pytest.mark.parametrize("name", ["sixteen", "xl"])
def test_a_controlnet_draws_as_diffusers_pipeline_does(name, request, tmp_path):
    base = request.getfixturevalue(name)
    adapter = read_adapter(write_controlnet(tmp_path, base), base)
    xl = diffusers.StableDiffusionXLControlNetPipeline
    kind = xl if name == "xl" else diffusers.StableDiffusionControlNetPipeline
    start, end = (0.25, 0.75) if name == "xl" else (0.4, 0.8)  # between evaluations, of which PNDM has 5
    scales = {"controlnet_conditioning_scale": 0.7, "control_guidance_start": start, "control_guidance_end": end}
    theirs = by_diffusers(kind, base, controlnet=adapter.model, image=picture(32, 64), **scales)
    ours = latents_of(base, [Control(adapter, picture(32, 64), 0.7, start, end)])
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (ours - latents_of(base, [])).abs().max() > 0.1


def test_several_adapters_add_as_in_diffusers_pipelines(sixteen, tmp_path):
    adapters = [read_adapter(write_t2i(tmp_path / str(seed), seed=seed), sixteen) for seed in range(2)]
    pictures, weights = [picture(32, 64, seed) for seed in range(2)], [0.4, 0.8]
    controls = [Control(*each) for each in zip(adapters, pictures, weights, strict=True)]
    both = diffusers.MultiAdapter([adapter.model for adapter in adapters])
    pipeline = diffusers.StableDiffusionAdapterPipeline
    scales = {"image": pictures, "adapter_conditioning_scale": weights}
    theirs = by_diffusers(pipeline, sixteen, adapter=both, **scales)
    torch.testing.assert_close(latents_of(sixteen, controls), theirs, **CLOSE)


def test_a_weight_of_0_and_steps_that_never_come_leave_the_drawing_as_it_is_to_the_bit(sixteen, tmp_path):
    """PNDM evaluates five times in four steps, after 0.2 and 0.4 of them and never between."""
    adapter = read_adapter(write_t2i(tmp_path), sixteen)
    without = draw(sixteen, [PROMPT], [1], how=HOW)
    for control in (Control(adapter, picture(32, 64), 0.0), Control(adapter, picture(32, 64), start=0.25, end=0.3)):
        assert torch.equal(draw(sixteen, [PROMPT], [1], how=HOW, controls=[control]), without)


def test_a_condition_acts_in_its_steps_only(sixteen, tmp_path):
    """Latents are the same until the first evaluation in which it acts."""
    control = Control(read_adapter(write_t2i(tmp_path), sixteen), picture(32, 64), start=0.5)
    seen: list[list[torch.Tensor]] = [[], []]
    for controls, steps in (([], seen[0]), ([control], seen[1])):
        draw(
            sixteen,
            [PROMPT],
            [1],
            how=HOW,
            controls=controls,
            on_latents=lambda step, to=steps: to.append(step.latents),
        )
    same = [torch.equal(a, b) for a, b in zip(*seen, strict=True)]
    assert same == [True, True, True, False, False]


@pytest.mark.parametrize("controlnet", [False, True])
def test_a_condition_of_a_region_adds_its_share_of_what_it_adds_everywhere(controlnet, sixteen, tmp_path):
    """What the UNet is given is 0 outside of the region, and the same inside."""
    folder = write_controlnet(tmp_path, sixteen) if controlnet else write_t2i(tmp_path)
    adapter, given = read_adapter(folder, sixteen), []

    def keep(module: object, args: object, kwargs: dict[str, object]) -> None:
        given.append(kwargs)

    hook = sixteen.unet.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        same = Region(PROMPT, Box(0, 0, 0.5, 1), negative="cat")  # so that a ControlNet reads the same text
        how = Drawing(steps=1, guidance=3.0, negative="cat", height=32, width=64)
        for region in (None, 0):
            latents_of(sixteen, [Control(adapter, picture(32, 64), region=region)], how, (same,))
    finally:
        hook.remove()
    name = "down_block_additional_residuals" if controlnet else "down_intrablock_additional_residuals"
    for everywhere, within in zip(given[0][name], given[1][name], strict=True):
        middle = everywhere.shape[3] // 2
        torch.testing.assert_close(within[..., :middle], everywhere[..., :middle])
        assert not within[..., middle:].any() and everywhere[..., middle:].any()


def test_a_condition_of_a_region_rests_while_the_region_does(sixteen, tmp_path):
    adapter = read_adapter(write_t2i(tmp_path), sixteen)
    late = Region("a cat", Box(0, 0, 0.5, 1), start=0.9)  # no evaluation begins so late
    without = latents_of(sixteen, [], regions=(late,))
    assert torch.equal(latents_of(sixteen, [Control(adapter, picture(32, 64), region=0)], regions=(late,)), without)


def test_the_text_of_a_controlnet_is_the_mean_over_layers_and_that_of_its_region(sixteen):
    (phase,) = read_written_prompts(
        sixteen, [PROMPT], {}, steps=4, evaluations=4, guidance=3.0, negative="cat", regions=[LEFT], size=(16, 32)
    )
    read = phase.conditioning
    torch.testing.assert_close(text_for(read, None), read.features[:, 3])  # ordinary words are alike in all layers
    negative, prompt = text_for(read, 0)
    torch.testing.assert_close(negative, read.features[0, 0])  # the region has no negative of its own
    torch.testing.assert_close(prompt, read.regions[0].features[0])
