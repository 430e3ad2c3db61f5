"""The pipeline draws what the command draws, to the byte of every pixel."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from mos_client.drawing.again import draw_again
from mos_client.drawing.controls import parse_controls
from mos_client.drawing.picture import draw_picture
from mos_common import Box, Drawing, MixOfShow, Region, mask_of
from mos_common.errors import RequestError
from reference.control_adapters import picture, write_controlnet, write_t2i

STEPS = 3


@pytest.fixture(scope="module")
def base(random_base_folder) -> str:
    return str(random_base_folder())


@pytest.fixture(scope="module")
def model(sixteen, published) -> Path:
    """A fused model of two concepts with their own changes beside."""
    return published(sixteen, "<cat>", "<dog>")


@pytest.fixture(scope="module")
def pipe(model, base) -> MixOfShow:
    return MixOfShow.from_pretrained(model, base=base, device="cpu")


@pytest.fixture
def command(model, base, tmp_path):
    """Return a function that draws as `mos-client draw` does: the pixels."""

    def draws(
        prompt: str, *, seeds: tuple = (0,), model: Path = model, regions=(), own=True, controls=(), **how
    ) -> np.ndarray:
        told = {"base": base, "device": "cpu", "regions": regions, "own": own, "seeds": seeds, "controls": controls}
        files = draw_picture(model, prompt, tmp_path / "picture.png", how=Drawing(steps=STEPS, **how), **told)
        return np.stack([np.asarray(Image.open(file)) for file in files[: len(seeds)]])

    return draws


def pixels(drawn) -> np.ndarray:
    return np.stack([np.asarray(image) for image in drawn.images])


MASK = mask_of(Image.linear_gradient("L").resize((16, 16)))
CAT, DOG = "a <cat> @ 0,0,0.5,1", Region("a <dog>", Box(0.4, 0, 1, 1), negative="b", edge=0.2, end=0.7)


@pytest.mark.parametrize(
    ("prompt", "given", "how", "places"),
    [
        ("a cat", {"seed": 3}, {}, []),
        ("a <cat>", {"seed": 3, "guidance_scale": 4.0}, {"guidance": 4.0}, []),
        ("(<cat>:1.2) [a:b:0.5]", {"negative_prompt": "<dog>", "seed": 3}, {"negative": "<dog>"}, []),
        ("<cat> and <dog>", {"seed": 3, "width": 32}, {"width": 32}, []),
        ("a b", {"seed": 3}, {}, [CAT, DOG]),
        ("a <cat>", {"seed": 3}, {}, [Region("a <dog>", MASK)]),
    ],
    ids=["no concept", "one", "grammar", "several", "regions", "mask"],
)
def test_pixels_are_those_of_the_command(pipe, command, prompt, given, how, places):
    by_command = [Region("a <cat>", Box(0, 0, 0.5, 1)) if place is CAT else place for place in places]
    drawn = pipe(prompt, regions=places, num_inference_steps=STEPS, **given)
    assert np.array_equal(pixels(drawn), command(prompt, seeds=(3,), regions=by_command, **how))


def test_a_batch_is_that_of_the_command_and_so_is_a_concept_file(pipe, model, base, command):
    drawn = pipe("a <cat>", num_images_per_prompt=3, seed=4, num_inference_steps=STEPS)
    assert np.array_equal(pixels(drawn), command("a <cat>", seeds=(4, 5, 6)))
    file = model.parent / "0.safetensors"
    alone = MixOfShow.from_pretrained(file, base=pipe.base)
    assert np.array_equal(
        pixels(alone("a <cat>", seed=1, num_inference_steps=STEPS)), command("a <cat>", seeds=(1,), model=file)
    )


def test_without_own_changes_the_fused_model_draws(model, pipe, command):
    fused = MixOfShow.from_pretrained(model, base=pipe.base, own="off")
    drawn = pixels(fused("a <cat>", seed=2, num_inference_steps=STEPS))
    assert np.array_equal(drawn, command("a <cat>", seeds=(2,), own=False))
    assert not np.array_equal(drawn, command("a <cat>", seeds=(2,)))


def test_a_picture_is_followed_as_the_command_follows_it(pipe, sixteen, command, tmp_path):
    write_t2i(tmp_path / "t2i")
    write_controlnet(tmp_path / "net", sixteen)
    picture(16, 16).save(tmp_path / "one.png")
    given = [
        pipe.control(tmp_path / "t2i", Image.open(tmp_path / "one.png"), weight=0.8, end=0.7),
        pipe.control(tmp_path / "net", Image.open(tmp_path / "one.png"), region=1),
    ]
    drawn = pipe("a <cat>", seed=3, regions=[CAT], control=given, num_inference_steps=STEPS)
    asked = parse_controls(
        [
            f"{tmp_path / 't2i'}: {tmp_path / 'one.png'} @ weight=0.8, end=0.7",
            f"{tmp_path / 'net'}: {tmp_path / 'one.png'} @ region=1",
        ]
    )
    by_command = command("a <cat>", seeds=(3,), regions=[Region("a <cat>", Box(0, 0, 0.5, 1))], controls=asked)
    assert np.array_equal(pixels(drawn), by_command)
    assert drawn.recipe is None
    plain = pipe("a <cat>", seed=3, regions=[CAT], num_inference_steps=STEPS)
    assert not np.array_equal(pixels(drawn), pixels(plain))
    with pytest.raises(RequestError, match="no adapter at nowhere"):
        pipe.control("nowhere", Image.new("L", (16, 16)))


def test_a_scheduler_made_from_the_configuration_is_the_one_of_that_name(pipe, command):
    try:
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        drawn = pipe("a <cat>", seed=2, num_inference_steps=STEPS)
        assert np.array_equal(pixels(drawn), command("a <cat>", seeds=(2,), scheduler="EulerDiscreteScheduler"))
        assert drawn.recipe.settings["scheduler"] == "EulerDiscreteScheduler"
    finally:
        pipe.scheduler = pipe.base.scheduler


def test_saved_pictures_are_drawn_again_bit_for_bit(pipe, model, base, tmp_path):
    drawn = pipe("a <cat>", num_images_per_prompt=2, seed=5, regions=[CAT], num_inference_steps=STEPS)
    files = drawn.save(tmp_path / "cats.png")
    assert [file.name for file in files] == ["cats-0.png", "cats-1.png"]
    for file in files:
        assert draw_again(model, file, tmp_path / "again.png", base=base, device="cpu").same


def test_a_generator_is_its_seed(pipe):
    seven = pixels(pipe("a <cat>", seed=7, num_inference_steps=STEPS))
    given = torch.Generator().manual_seed(7)
    drawn = pipe("a <cat>", generator=given, num_inference_steps=STEPS)
    assert np.array_equal(pixels(drawn), seven)
    assert (drawn.seeds, drawn.recipe) == ((None,), None)
    assert not np.array_equal(pixels(pipe("a <cat>", generator=given, num_inference_steps=STEPS)), seven)
