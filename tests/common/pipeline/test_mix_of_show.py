"""The pipeline from Python: what it takes, what it gives, and what diffusers' own draws."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from mos_common import Box, MixOfShow, Region, mask_of
from mos_common.concept_file import write_concept
from mos_common.errors import PicturesError, RequestError
from mos_common.picture_metadata import read_recipe

QUICK = {"num_inference_steps": 3, "seed": 1}


@pytest.fixture
def concept_file(sixteen, make_concept, tmp_path) -> Path:
    write_concept(make_concept(sixteen), tmp_path / "cat.safetensors")
    return tmp_path / "cat.safetensors"


@pytest.fixture
def pipe(sixteen, concept_file) -> MixOfShow:
    return MixOfShow.from_pretrained(concept_file, base=sixteen)


def pixels(drawn) -> np.ndarray:
    return np.stack([np.asarray(image) for image in drawn.images])


def test_a_prompt_without_a_concept_is_drawn_as_by_diffusers(pipe, random_base_folder):
    """Same weights, prompts, noise and sampler: the pixels differ by rounding alone."""
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(random_base_folder(), safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    told = {"negative_prompt": "b", "num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "np"}
    expected = theirs("a cat", generator=torch.Generator().manual_seed(3), **told).images
    drawn = pipe("a cat", generator=torch.Generator().manual_seed(3), **told).images
    np.testing.assert_allclose(drawn, expected, atol=1e-4)


def test_the_kinds_of_output_are_the_same_picture(pipe):
    (image,) = pipe("a <cat>", **QUICK).images
    assert isinstance(image, Image.Image)
    as_array = pipe("a <cat>", output_type="np", **QUICK).images
    as_tensor = pipe("a <cat>", output_type="pt", **QUICK).images
    latents = pipe("a <cat>", output_type="latent", **QUICK).images
    assert np.array_equal(np.asarray(image), np.rint(as_array[0] * 255).astype(np.uint8))
    assert np.array_equal(as_tensor.permute(0, 2, 3, 1).numpy(), as_array)
    decoded = pipe.base.decode_latents(latents) / 2 + 0.5
    torch.testing.assert_close(decoded.clamp(0, 1), as_tensor)
    (alone,) = pipe("a <cat>", return_dict=False, **QUICK)
    assert np.array_equal(np.asarray(alone[0]), np.asarray(image))


def test_prompts_of_a_list_follow_each_other(pipe):
    drawn = pipe(
        ["a <cat>", "a b"], num_images_per_prompt=2, num_inference_steps=2, seed=[5, 6, 5, 6], output_type="np"
    )
    assert drawn.seeds == (5, 6, 5, 6)
    assert drawn.recipe is None
    for place, (prompt, seed) in enumerate([("a <cat>", 5), ("a <cat>", 6), ("a b", 5), ("a b", 6)]):
        alone = MixOfShow.__call__(pipe, [prompt, "a <cat>"], num_inference_steps=2, seed=[seed, 0], output_type="np")
        np.testing.assert_allclose(drawn.images[place], alone.images[0], atol=1e-4)


def test_without_a_seed_torch_s_global_one_decides_and_the_picture_has_its_seed(pipe):
    torch.manual_seed(3)
    first = pipe("a <cat>", num_inference_steps=2)
    torch.manual_seed(3)
    second = pipe("a <cat>", num_inference_steps=2)
    assert first.seeds == second.seeds
    assert np.array_equal(pixels(first), pixels(second))
    assert pipe("a <cat>", num_inference_steps=2).seeds != first.seeds
    assert np.array_equal(pixels(pipe("a <cat>", num_inference_steps=2, seed=first.seeds[0])), pixels(first))


def test_a_callback_sees_each_evaluation_and_may_change_the_latents(pipe):
    seen = []

    def look(of, step, time, told):
        assert of is pipe
        seen.append((step, int(time), told["latents"].clone()))
        return told

    plain = pixels(pipe("a <cat>", **QUICK))
    watched = pipe("a <cat>", callback_on_step_end=look, **QUICK)
    assert np.array_equal(pixels(watched), plain)
    assert [step for step, _, _ in seen] == list(range(pipe.num_timesteps))
    assert [time for _, time, _ in seen] == sorted((time for _, time, _ in seen), reverse=True)
    assert torch.equal(pipe("a <cat>", output_type="latent", **QUICK).images, seen[-1][2])
    changed = pipe("a <cat>", callback_on_step_end=lambda *told: {"latents": -told[3]["latents"]}, **QUICK)
    assert not np.array_equal(pixels(changed), plain)
    assert changed.recipe is None, "no recipe says what a callback did"


def test_an_interrupted_drawing_has_the_latents_of_its_last_step(pipe):
    seen = []

    def stop(of, step, _time, told):
        seen.append(told["latents"].clone())
        of._interrupt = step == 1
        return told

    latents = pipe("a <cat>", callback_on_step_end=stop, output_type="latent", **QUICK).images
    assert len(seen) == 2
    assert torch.equal(latents, seen[1])
    assert len(pixels(pipe("a <cat>", **QUICK))) == 1, "the next drawing is not interrupted"


def test_a_scheduler_with_settings_of_its_own_is_honoured(pipe):
    """The steps of Karras, as diffusers' own pipeline takes them with the same scheduler."""
    kind = diffusers.DPMSolverMultistepScheduler
    plain = pixels(pipe("a <cat>", **QUICK))
    pipe.scheduler = kind.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    times: list[float] = []

    def look(_pipe, _step, time, told):
        times.append(float(time))
        return told

    drawn = pipe("a <cat>", callback_on_step_end=look, **QUICK)
    expected = kind.from_config(pipe.scheduler.config)
    expected.set_timesteps(3)
    assert times == expected.timesteps.tolist()
    assert not np.array_equal(pixels(drawn), plain)
    assert pipe("a <cat>", **QUICK).recipe is None


def test_a_scheduler_that_does_not_suit_is_refused_by_name(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(RequestError, match=r"FlowMatchEulerDiscreteScheduler samples another kind of model"):
        pipe("a <cat>", **QUICK)
    pipe.scheduler = diffusers.DDIMScheduler(beta_start=0.1, beta_end=0.2)
    with pytest.raises(RequestError, match=r"DDIMScheduler does not follow the noise schedule.*from_config"):
        pipe("a <cat>", **QUICK)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_type": "jpg"}, r"output_type 'jpg': expected one of pil, pt, np, latent"),
        ({"regions": ["a <cat>"]}, r"region 'a <cat>': expected \"PROMPT @ x0,y0,x1,y1\""),
        ({"regions": ["a <cat> @ mask.png"]}, r"give Region\(PROMPT, mask_of\(IMAGE\)\)"),
        ({"regions": ["a <cat> @ 0,0,2,1"]}, r"each from 0 to 1"),
        (
            {"regions": [Region("a", mask_of(Image.new("L", (8, 16), 255)))]},
            r"mask 8 x 16 is 8 x 16, the picture 16 x 16",
        ),
        ({"seed": [1, 2], "num_images_per_prompt": 3}, r"2 seeds for 3 pictures"),
        ({"seed": -1}, r"seed -1: other tools take it for a random seed"),
        ({"seed": 1, "generator": torch.Generator()}, r"give one of them"),
        ({"generator": [torch.Generator()] * 2}, r"2 generators for 1 pictures"),
        ({"num_images_per_prompt": 0}, r"num_images_per_prompt 0"),
        ({"negative_prompt": ["a", "b"]}, r"negative_prompt: expected one text"),
        ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, r"'prompt_embeds'"),
        ({"callback_on_step_end": lambda *_: None}, r"returned NoneType: return the dict"),
        ({"callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}}, r"latents \(1,\): expected \(1, 4, 8, 8\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(pipe, given, message):
    with pytest.raises(RequestError, match=message):
        pipe("a <cat>", num_inference_steps=2, **given)


def test_a_model_that_is_not_there_and_two_names_of_one_thing(tmp_path, concept_file, sixteen, random_base_folder):
    with pytest.raises(RequestError, match=r"no model at"):
        MixOfShow.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(RequestError, match=r"two names of one thing"):
        MixOfShow.from_pretrained(concept_file, torch_dtype=torch.float32, dtype="float32")
    with pytest.raises(RequestError, match=r"loaded already"):
        MixOfShow.from_pretrained(concept_file, base=sixteen, device="cpu")
    with pytest.raises(RequestError, match=r"own 'on': expected auto or off"):
        MixOfShow.from_pretrained(concept_file, base=sixteen, own="on")
    half = MixOfShow.from_pretrained(concept_file, base=random_base_folder(), device="cpu", torch_dtype=torch.bfloat16)
    assert (half.dtype, half.device.type, half.concepts) == (torch.bfloat16, "cpu", ["<cat>"])


def test_saved_pictures_say_what_they_are(pipe, tmp_path):
    (file,) = pipe("a <cat>", regions=[Region("a b", Box(0, 0, 1, 0.5))], **QUICK).save(tmp_path / "cat.png")
    recipe = read_recipe(file)
    assert (recipe.prompt, recipe.seeds, [region.prompt for region in recipe.regions]) == ("a <cat>", [1], ["a b"])
    (other,) = pipe("a <cat>", num_inference_steps=1, generator=torch.Generator()).save(tmp_path / "other.png")
    with pytest.raises(PicturesError, match="has no recipe"):
        read_recipe(other)
    with pytest.raises(RequestError, match="only PIL images"):
        pipe("a <cat>", output_type="np", **QUICK).save(tmp_path / "x.png")
