"""Every example of docs/library.md runs as it stands, in a folder with a model called "fused"."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from docs.commands import TOP, blocks, is_python

EXAMPLES = [block for block in blocks((TOP / "docs" / "library.md").read_text(encoding="utf-8")) if is_python(block)]


@pytest.fixture
def here(tiny, published, tmp_path, monkeypatch):
    """A folder with a model, its own changes beside, to run an example in."""
    shutil.copytree(published(tiny, "<cat>", "<dog>").parent, tmp_path / "model")
    monkeypatch.chdir(tmp_path / "model")
    return tmp_path / "model"


def read(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        return np.asarray(opened)


def run(number: int) -> dict:
    names: dict = {}
    exec(compile(EXAMPLES[number], f"example {number}", "exec"), names)
    return names


def test_there_are_six():
    assert len(EXAMPLES) == 6


def test_the_plain_one_writes_its_picture(here):
    image = run(0)["image"]
    assert np.array_equal(read(here / "cat.png"), np.asarray(image))


def test_several_concepts_stand_in_their_regions(here):
    drawn = run(1)["drawn"]
    assert read(here / "both.png").shape == (64, 128, 3)
    assert len(drawn.recipe.regions) == 2
    assert drawn.recipe.own == ["<cat>", "<dog>"]


def test_a_sketch_is_followed(here):
    names = run(2)
    plain = names["pipe"]("a <dog> in the snow", num_inference_steps=8, seed=3).images[0]
    assert read(here / "followed.png").shape == (64, 64, 3)
    assert not np.array_equal(np.asarray(plain), np.asarray(names["image"]))


def test_a_scheduler_and_a_callback_change_the_picture(here):
    names = run(3)
    plain = names["pipe"]("a <dog> on the beach", num_inference_steps=8, seed=3).images[0]
    assert read(here / "dog.png").shape == (64, 64, 3)
    assert not np.array_equal(np.asarray(plain), np.asarray(names["image"]))


def test_a_batch_is_saved_with_its_recipe(here, capsys):
    run(4)
    assert capsys.readouterr().out.splitlines()[:3] == ["cats-0.png", "cats-1.png", "cats-2.png"]
    assert (here / "cats-2.png").is_file()


def test_own_changes_are_drawn_by_a_compiled_model(here, monkeypatch):
    trace = logging.getLogger("torch.__trace")  # without handlers, torch does not write its trace
    monkeypatch.setattr(trace, "addHandler", lambda _handler: None)
    monkeypatch.setattr(trace, "handlers", [])
    torch._dynamo.reset()
    names = run(5)
    assert names["pipe"].concepts == ["<cat>", "<dog>"]
    assert not np.array_equal(np.asarray(names["by_itself"]), np.asarray(names["by_fusion"]))
