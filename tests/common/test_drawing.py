"""Drawing, against diffusers' own StableDiffusionPipeline."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import diffusers
import pytest
import torch

from mos_common.base_model import Base, load_base
from mos_common.drawing import Drawing, draw, initial_noise, scheduler_for
from mos_common.edlora import attached
from mos_common.errors import RequestError
from mos_common.regions import Region
from mos_common.settings import describe_settings, parse_settings
from mos_common.shapes import Box

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
    regional = draw(base, ["dog"], [1], regions=[Region("a cat", Box(0, 0, 1, 1))], how=how)
    torch.testing.assert_close(regional, draw(base, ["a cat"], [1], how=how), **CLOSE)


@pytest.mark.parametrize("size", [(64, 64), (72, 104)])
def test_one_region_over_everything_with_the_picture_s_prompt_is_the_plain_drawing(tiny, size):
    how = Drawing(steps=4, height=size[0], width=size[1], negative="a red car")
    region = Region("a dog", Box(0, 0, 1, 1), negative="a red car")
    regional = draw(tiny, ["a dog"], [1], regions=[region], how=how)
    torch.testing.assert_close(regional, draw(tiny, ["a dog"], [1], how=how), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(72, 104), (88, 56)])
def test_a_picture_whose_feature_maps_do_not_halve_evenly_is_the_one_of_diffusers(tiny, size):
    """Latents of 18 by 26 and 22 by 14 cells, whose halves are odd."""
    how = Drawing(steps=2, guidance=2.0, height=size[0], width=size[1])
    found = draw(tiny, ["a dog"], [1], how=how)
    assert found.shape == (1, 3, *size)
    torch.testing.assert_close(found, by_diffusers(tiny, ["a dog"], [1], how, 2.0), **CLOSE)


def test_two_regions_with_the_picture_s_prompt_are_the_plain_drawing_at_an_uneven_size(tiny):
    """A soft border at an odd place: whatever the shares are, they add up to the prompt."""
    how = Drawing(steps=3, height=72, width=104)
    regions = [Region("a dog", Box(0, 0, 0.37, 1), edge=0.2), Region("a dog", Box(0.3, 0, 1, 0.8), keeps=0.5)]
    regional = draw(tiny, ["a dog"], [1], regions=regions, how=how)
    torch.testing.assert_close(regional, draw(tiny, ["a dog"], [1], how=how), rtol=0, atol=1e-4)


def test_a_region_holds_for_its_part_of_the_steps_only(tiny):
    """Before its start and after its end the picture is drawn as if it were not there.

    The other road: a region that changes nothing, since its prompt is the picture's.
    """
    how, everywhere = Drawing(steps=4, scheduler="DDIMScheduler"), Box(0, 0, 1, 1)
    plain = draw(tiny, ["a dog"], [1], how=how)
    other = draw(tiny, ["a red car"], [1], how=how)
    first = draw(tiny, ["a dog"], [1], regions=[Region("a red car", everywhere, end=0.5)], how=how)
    last = draw(tiny, ["a red car"], [1], regions=[Region("a dog", everywhere, start=0.5)], how=how)
    torch.testing.assert_close(first, last, rtol=0, atol=1e-4)
    assert min(float((first - each).abs().max()) for each in (plain, other)) > 0.05
    never = draw(tiny, ["a dog"], [1], regions=[Region("a red car", everywhere, start=0.9)], how=how)
    assert torch.equal(never, plain), "no step begins after 0.9 of four"


def test_a_region_s_negative_is_the_unconditional_text_of_guidance_there(tiny):
    """Over everything it is the picture's negative; without guidance nobody reads it."""
    region = Region("a dog", Box(0, 0, 1, 1), negative="a red car")
    guided = Drawing(steps=3, guidance=3.0)
    found = draw(tiny, ["a dog"], [1], regions=[region], how=guided)
    expected = draw(tiny, ["a dog"], [1], how=replace(guided, negative="a red car"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - draw(tiny, ["a dog"], [1], how=guided)).abs().max() > 0.05
    free = Drawing(steps=3, guidance=1.0)
    unguided = draw(tiny, ["a dog"], [1], regions=[region], how=free)
    torch.testing.assert_close(unguided, draw(tiny, ["a dog"], [1], how=free), rtol=0, atol=1e-4)


def test_an_empty_negative_of_a_region_of_xl_is_zeros_as_the_picture_s_is(xl):
    assert xl.force_zeros_for_empty_prompt
    how = Drawing(steps=2, guidance=3.0)
    region = Region("a dog", Box(0, 0, 1, 1), negative="")
    regional = draw(xl, ["a dog"], [1], regions=[region], how=how)
    torch.testing.assert_close(regional, draw(xl, ["a dog"], [1], how=how), **CLOSE)


def test_regions_may_name_concepts(base, make_concept):
    concept, how = make_concept(base), Drawing(steps=2, guidance=3.0)
    known = {concept.name: concept.words[0]}
    with attached(base, concept.pairs):
        regional = draw(base, ["dog"], [1], vocabulary=known, regions=[Region("a <cat>", Box(0, 0, 1, 1))], how=how)
        direct = draw(base, ["a <cat>"], [1], vocabulary=known, how=how)
    torch.testing.assert_close(regional, direct, **CLOSE)
    assert (direct - draw(base, ["a cat"], [1], how=how)).abs().max() > 1e-3


def test_a_private_place_named_in_the_prompt_acts_outside_the_regions_and_where_they_name_it(tiny):
    """The paper's composition: three of one class on somebody's place, which means "beach" here.

    The other road: the same picture with the ordinary words in place of all names.
    """
    known = {
        **{f"<{name}/dog>": words_of_the_table(tiny, "dog") for name in ("alice", "bob", "carol")},
        "<carol/garden>": words_of_the_table(tiny, "beach"),
    }
    how, boxes = Drawing(steps=4, height=64, width=192), [Box(0, 0.1, 0.4, 1), Box(0.3, 0, 0.7, 1), Box(0.6, 0, 1, 1)]
    named = [
        Region(f"a <{name}/dog> on the <garden>", box, priority=i % 2, edge=0.1)
        for i, (name, box) in enumerate(zip(("bob", "alice", "carol"), boxes, strict=True))
    ]
    plain = [replace(region, prompt="a dog on the beach") for region in named]
    private = draw(tiny, ["three dogs on the <carol/garden>"], [7], vocabulary=known, regions=named, how=how)
    public = draw(tiny, ["three dogs on the beach"], [7], regions=plain, how=how)
    torch.testing.assert_close(private, public, **CLOSE)
    elsewhere = draw(tiny, ["three dogs in the forest"], [7], regions=plain, how=how)
    corner = (..., slice(0, 16), slice(0, 16))  # above the first box
    assert (private[corner] - elsewhere[corner]).abs().mean() > 0.05


def test_regions_work_without_guidance_and_for_several_pictures(base):
    how = Drawing(steps=2, guidance=1.0)
    region = [Region("a cat", Box(0, 0, 0.5, 1))]
    both = draw(base, ["dog", "dog"], [1, 2], regions=region, how=how)
    torch.testing.assert_close(both[1:], draw(base, ["dog"], [2], regions=region, how=how), **CLOSE)


def test_keys_and_values_are_computed_once_per_picture(sixteen):
    calls, handles = [], []
    for cross in sixteen.layout.cross_attentions:
        for linear in (cross.module.to_k, cross.module.to_v):
            handles.append(linear.register_forward_pre_hook(lambda *_: calls.append(1)))
    try:
        draw(sixteen, ["dog"], [0], regions=[Region("cat", Box(0, 0, 0.5, 1))], how=Drawing(steps=4))
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == 16 * 2, "16 layers, keys and values, once for prompts and region: whatever the steps"


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
    region = [Region("a dog", Box(0, 0, 0.5, 1))]
    half = draw(coarse, ["a red car"], [0], regions=region, how=Drawing(steps=4))
    full = draw(tiny, ["a red car"], [0], regions=region, how=Drawing(steps=4))
    assert (half - full).abs().mean() < 0.1


@pytest.mark.parametrize("side", [10, 63, 74])
def test_sizes_that_are_no_whole_latents_are_refused_with_the_unit(tiny, side):
    with pytest.raises(RequestError, match=f"{side} x 64 pixels.*multiples of 4"):
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
