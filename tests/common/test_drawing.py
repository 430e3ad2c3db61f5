"""Drawing, against diffusers' own StableDiffusionPipeline."""

from __future__ import annotations

import re
from dataclasses import fields

import diffusers
import pytest
import torch

from mos_common.base_model import Base, load_base
from mos_common.drawing import Drawing, draw, initial_noise, scheduler_for
from mos_common.edlora import attached
from mos_common.errors import RequestError
from mos_common.regions import Region
from mos_common.settings import describe_settings, parse_settings

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def by_diffusers(base: Base, prompts: list[str], seeds: list[int], how: Drawing, guidance: float) -> torch.Tensor:
    """The same picture by diffusers' pipeline, in [-1, 1]."""
    pipe = diffusers.StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=scheduler_for(base, how),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    height, width = how.sized_for(base)
    pictures = pipe(
        prompts,
        height=height,
        width=width,
        num_inference_steps=how.steps,
        guidance_scale=guidance,
        negative_prompt=[how.negative] * len(prompts),
        latents=initial_noise(base, seeds, height, width),
        output_type="pt",
    ).images
    return pictures.cpu() * 2 - 1


@pytest.mark.parametrize(
    "how",
    [
        Drawing(steps=4, guidance=3.0),
        Drawing(steps=3, guidance=1.0),
        Drawing(steps=3, guidance=5.0, negative="dog"),
        Drawing(steps=3, guidance=2.0, scheduler="DDIMScheduler"),
    ],
    ids=["guided", "unguided", "negative", "another scheduler"],
)
def test_a_plain_drawing_is_the_one_of_diffusers(base, how):
    prompts, seeds = ["a cat in the snow", ""], [5, 6]
    found = draw(base, prompts, seeds, how=how)
    torch.testing.assert_close(found, by_diffusers(base, prompts, seeds, how, how.guidance), **CLOSE)


def test_a_wide_picture_is_the_one_of_diffusers(base):
    how = Drawing(steps=2, guidance=2.0, width=2 * base.picture_size)
    found = draw(base, ["cat"], [1], how=how)
    assert found.shape == (1, 3, base.picture_size, 2 * base.picture_size)
    torch.testing.assert_close(found, by_diffusers(base, ["cat"], [1], how, 2.0), **CLOSE)


def test_a_base_that_predicts_v_draws_like_diffusers(random_base):
    base, how = random_base(prediction_type="v_prediction", scheduler="DDIMScheduler"), Drawing(steps=3, guidance=2.0)
    torch.testing.assert_close(draw(base, ["cat"], [1], how=how), by_diffusers(base, ["cat"], [1], how, 2.0), **CLOSE)


def test_without_a_word_about_it_the_base_has_its_own_guidance(tiny):
    own = draw(tiny, ["a cat"], [0], how=Drawing(steps=2))
    assert torch.equal(own, draw(tiny, ["a cat"], [0], how=Drawing(steps=2, guidance=tiny.preset.guidance)))


def test_a_guidance_of_0_is_a_guidance_and_not_the_base_s_own(tiny):
    """The prompt then counts for nothing: the picture is that of the negative text."""
    found = draw(tiny, ["a cat"], [0], how=Drawing(steps=2, guidance=0.0, negative="a red car"))
    expected = draw(tiny, ["a red car"], [0], how=Drawing(steps=2, guidance=1.0))
    torch.testing.assert_close(found, expected, **CLOSE)


def test_every_setting_says_what_it_means_and_may_be_set_by_name():
    """Sizes and guidance are None by default, and numbers where they are given."""
    described = list(describe_settings(Drawing))
    assert [re.split("[=:]", line)[0] for line in described] == [each.name for each in fields(Drawing)]
    assert "pixels" in described[2]
    given = parse_settings(Drawing, ["guidance=3.5", "width=96", "scheduler=DDIMScheduler"])
    assert Drawing(**given) == Drawing(guidance=3.5, width=96, scheduler="DDIMScheduler")
    assert Drawing().guidance is Drawing().width is Drawing().height is Drawing().scheduler is None


def words_of_the_table(base: Base, word: str) -> torch.Tensor:
    ids = base.tokenizer(word, add_special_tokens=False).input_ids
    return base.token_table[ids].expand(base.layout.word_layers, -1, -1)


def test_a_concept_that_says_cat_in_every_layer_draws_a_cat(base):
    how = Drawing(steps=3, guidance=3.0)
    found = draw(base, ["a <v>"], [2], vocabulary={"<v>": words_of_the_table(base, "cat")}, how=how)
    torch.testing.assert_close(found, by_diffusers(base, ["a cat"], [2], how, 3.0), **CLOSE)


def test_a_region_that_covers_everything_draws_its_prompt(base):
    how = Drawing(steps=3, guidance=3.0)
    regional = draw(base, ["dog"], [1], regions=[Region("a cat", 0, 0, 1, 1)], how=how)
    torch.testing.assert_close(regional, draw(base, ["a cat"], [1], how=how), **CLOSE)


def test_regions_may_name_concepts(base, make_concept):
    concept, how = make_concept(base), Drawing(steps=2, guidance=3.0)
    known = {concept.name: concept.words[0]}
    with attached(base, concept.pairs):
        regional = draw(base, ["dog"], [1], vocabulary=known, regions=[Region("a <cat>", 0, 0, 1, 1)], how=how)
        direct = draw(base, ["a <cat>"], [1], vocabulary=known, how=how)
    torch.testing.assert_close(regional, direct, **CLOSE)
    assert (direct - draw(base, ["a cat"], [1], how=how)).abs().max() > 1e-3


def test_regions_work_without_guidance_and_for_several_pictures(base):
    how = Drawing(steps=2, guidance=1.0)
    region = [Region("a cat", 0, 0, 0.5, 1)]
    both = draw(base, ["dog", "dog"], [1, 2], regions=region, how=how)
    torch.testing.assert_close(both[1:], draw(base, ["dog"], [2], regions=region, how=how), **CLOSE)


def test_keys_and_values_are_computed_once_per_picture(sixteen):
    calls, handles = [], []
    for cross in sixteen.layout.cross_attentions:
        for linear in (cross.module.to_k, cross.module.to_v):
            handles.append(linear.register_forward_pre_hook(lambda *_: calls.append(1)))
    try:
        draw(sixteen, ["dog"], [0], regions=[Region("cat", 0, 0, 0.5, 1)], how=Drawing(steps=4))
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == 16 * 2 * 2, "16 layers, keys and values, prompts and region: whatever the steps"


def test_a_seed_means_the_same_picture_alone_or_in_company(base):
    how = Drawing(steps=2)
    together = draw(base, ["cat", "dog"], [3, 4], how=how)
    torch.testing.assert_close(draw(base, ["dog"], [4], how=how), together[1:], **CLOSE)
    assert not torch.equal(together[0], together[1])


def test_drawing_twice_gives_the_same_bits_and_leaves_the_base_as_it_was(base):
    timesteps = getattr(base.scheduler, "num_inference_steps", None)
    first = draw(base, ["cat"], [0], how=Drawing(steps=2))
    assert torch.equal(first, draw(base, ["cat"], [0], how=Drawing(steps=2)))
    assert getattr(base.scheduler, "num_inference_steps", None) == timesteps


def test_pictures_are_finite_and_within_range(base):
    picture = draw(base, ["cat"], [0], how=Drawing(steps=2))
    assert picture.dtype == torch.float32
    assert picture.shape == (1, 3, base.picture_size, base.picture_size)
    assert picture.isfinite().all()
    assert picture.abs().max() <= 1


def test_progress_counts_every_step_to_the_end(tiny):
    seen = []
    draw(tiny, ["cat"], [0], how=Drawing(steps=3), on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_bfloat16_draws_nearly_the_same(tiny):
    coarse = load_base("tiny", device="cpu", dtype="bfloat16")
    region = [Region("a dog", 0, 0, 0.5, 1)]
    half = draw(coarse, ["a red car"], [0], regions=region, how=Drawing(steps=4))
    full = draw(tiny, ["a red car"], [0], regions=region, how=Drawing(steps=4))
    assert (half - full).abs().mean() < 0.1


@pytest.mark.parametrize("side", [10, 63, 72])
def test_sizes_the_unet_cannot_halve_are_refused_with_the_unit(tiny, side):
    with pytest.raises(RequestError, match=f"{side} x 64 pixels.*multiples of 16"):
        draw(tiny, ["cat"], [0], how=Drawing(width=side))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1001}, {"guidance": -1.0}, {"width": 0}, {"height": -16}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(RequestError):
        Drawing(**wrong)


def test_an_unknown_scheduler_lists_the_known(tiny):
    with pytest.raises(RequestError, match=r"unknown scheduler 'Nonsense'.*known: .*DDIMScheduler"):
        draw(tiny, ["cat"], [0], how=Drawing(scheduler="Nonsense"))


def test_an_unknown_concept_is_refused_before_anything_is_drawn(tiny):
    with pytest.raises(RequestError, match="unknown concept <cat>"):
        draw(tiny, ["<cat>"], [0], on_step=lambda *_: pytest.fail("drew"))


@pytest.mark.parametrize(
    "name", [None, "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_no_scheduler_clips_latents(base, name):
    assert not scheduler_for(base, Drawing(scheduler=name)).config.get("clip_sample", False)
