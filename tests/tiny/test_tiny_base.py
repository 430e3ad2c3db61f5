"""The embedded base model and the demonstration concepts, as they are shipped."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mos_client.pictures.folder import split_pictures
from mos_common.drawing import Drawing, draw
from mos_common.names import check_concept_name
from mos_tiny import LICENCES, base_folder, demo_concepts
from mos_tiny import demo_sketch as shipped_sketch
from mos_tiny.recipe.art import SETS, load_art
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.demo_sketch import demo_sketch
from mos_tiny.recipe.demonstration import DEMONSTRATIONS, write_concept
from mos_tiny.recipe.world import HAIR, HUES, NOUNS, PALETTE, SCENES, STYLES

CONCEPTS = sorted(folder.name for folder in demo_concepts().iterdir())


def test_finding_the_base_imports_nothing_heavy():
    code = (
        "import sys, mos_tiny; mos_tiny.base_folder(); mos_tiny.demo_concepts();"
        "print([m for m in ('torch', 'numpy', 'PIL', 'mos_common') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_diffusers_own_pipeline_loads_and_draws_it(tiny):
    """Without guidance, our drawing equals that of the pipeline."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    kinds = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    assert kinds == {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "scheduler": "DPMSolverMultistepScheduler",
    }
    theirs = pipeline(
        "a red car on a white background",
        num_inference_steps=4,
        guidance_scale=1,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    ours = draw(tiny, ["a red car on a white background"], [5], how=Drawing(steps=4, guidance=1))
    torch.testing.assert_close((ours + 1) / 2, theirs, atol=2e-3, rtol=0)


def test_it_is_stored_in_half_precision_and_small():
    from safetensors import safe_open

    files = [file for file in base_folder().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 25e6
    assert {file.suffix for file in files} <= {".json", ".txt", ".safetensors"}
    for weights in base_folder().rglob("*.safetensors"):
        with safe_open(weights, "pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        assert kinds == {"F16"}, weights


def test_every_word_of_its_world_is_one_token(tiny):
    """A concept starts from a class word of one token."""
    said = [*NOUNS, *HUES, *PALETTE, *HAIR, *SCENES.values(), *STYLES.values(), "man", "woman", "person", "background"]
    words = sorted({word for text in said for word in text.split()})
    assert {word: len(tiny.tokenizer.tokenize(word)) for word in words} == dict.fromkeys(words, 1)


def test_it_knows_a_car_from_a_cat_and_red_from_blue(tiny):
    """The corners of a drawing have the colour that the prompt names."""
    drawn = draw(tiny, [f"a cat on a {colour} background" for colour in ("red", "blue")], [1, 1], how=Drawing(steps=8))
    red, blue = (picture[:, :6, :6].mean(dim=(1, 2)) for picture in drawn)
    assert red[0] > red[2] + 0.5 and blue[2] > blue[0] + 0.5


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_demonstration_concept_is_a_folder_that_a_participant_would_bring(name, tiny):
    folder = demo_concepts() / name
    about = json.loads((folder / "concept.json").read_text())
    assert about["name"] == f"<{name}>" and about["art"] and about["licence"]
    check_concept_name(about["name"])
    assert len(tiny.tokenizer.tokenize(about["class"])) == 1
    tuned_on, held_back = split_pictures(folder)
    assert (len(tuned_on), len(held_back)) == (10, 2)
    places = {*SCENES.values(), *(f"on a {colour} background" for colour in PALETTE)}
    captions = []
    for file in (picture.path for picture in (*tuned_on, *held_back)):
        with Image.open(file) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
        captions.append(file.with_suffix(".txt").read_text().strip())
    assert {caption.partition(" ")[0] for caption in captions} == {"V"}
    assert {caption.partition(" ")[2] for caption in captions} <= places
    assert len(set(captions)) == 12


def test_the_recipe_makes_the_demonstration_concepts_again_pixel_for_pixel(tmp_path):
    world = World()
    assert [shown.name for shown in DEMONSTRATIONS] == ["tom", "coral", "ginger", "sunny", "rex"]
    for shown in DEMONSTRATIONS:
        write_concept(shown, tmp_path / shown.name, world)
        shipped = sorted((demo_concepts() / shown.name).iterdir())
        assert [file.name for file in shipped] == sorted(file.name for file in (tmp_path / shown.name).iterdir())
        for file in shipped:
            again = tmp_path / shown.name / file.name
            if file.suffix == ".png":
                np.testing.assert_array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(file)))
            else:
                assert again.read_text() == file.read_text()


def test_the_recipe_makes_the_sketch_of_the_demonstration_again_pixel_for_pixel():
    with Image.open(shipped_sketch()) as shipped:
        np.testing.assert_array_equal(np.asarray(demo_sketch(World())), np.asarray(shipped))
    assert "`demo-sketch.png`" in LICENCES.read_text()


def test_every_demonstration_concept_is_credited_as_its_folder_says():
    """Each has a row in the credits, with the licence that its `concept.json` names."""
    rows = {line.split("`")[1]: line for line in LICENCES.read_text().splitlines() if line.startswith("| `<")}
    assert {name.strip("<>") for name in rows} == set(CONCEPTS)
    for name in CONCEPTS:
        about = json.loads((demo_concepts() / name / "concept.json").read_text())
        designer = about["art"].split(" by ")[1].split(",")[0]
        assert f"| {about['licence']} |" in rows[about["name"]] and designer in rows[about["name"]]


def test_all_art_is_credited():
    """Every style of every set has its row in the credits."""
    credits = LICENCES.read_text().lower()
    for name in SETS:
        for style in {label["style"] for label in load_art(name).labels}:
            assert style.lower() in credits, style
