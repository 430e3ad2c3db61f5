"""The nodes' functions without ComfyUI: inputs as it expects them, pictures as the command's."""

from __future__ import annotations

import inspect
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mos_client.drawing.picture import draw_picture
from mos_common import Box, Drawing, Region, mask_of
from mos_common.own.names import own_folder

TYPES = {"STRING", "FLOAT", "INT", "BOOLEAN", "MASK", "MOS_MODEL", "MOS_REGIONS"}
HOW = {"negative": "", "steps": 2, "guidance": 0.0, "width": 0, "height": 0, "count": 1, "own": "auto"}


@pytest.fixture(scope="module")
def loaded(nodes, model):
    (pipe,) = nodes.MixOfShowModel().load(str(model), "tiny", "cpu", "auto")
    return pipe


@pytest.fixture
def draws(nodes, loaded):
    def draw(prompt: str, **told) -> np.ndarray:
        told = {"seed": 3, "scheduler": nodes.OWN, **HOW, **told}
        (images,) = nodes.MixOfShowDraw().draw(loaded, prompt, **told)
        assert images.ndim == 4 and images.shape[3] == 3 and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1
        return np.rint(images.numpy() * 255).astype(np.uint8)

    return draw


@pytest.fixture
def command(model, tmp_path):
    def draw(prompt: str, *, regions=(), own=True, seeds=(3,), **how) -> np.ndarray:
        told = {"regions": regions, "own": own, "seeds": seeds, "device": "cpu"}
        files = draw_picture(model, prompt, tmp_path / "x.png", how=Drawing(**{"steps": 2, **how}), **told)
        return np.stack([np.asarray(Image.open(file)) for file in files[: len(seeds)]])

    return draw


def test_every_input_has_a_type_a_tooltip_and_its_parameter(nodes):
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        named = {**inputs["required"], **inputs.get("optional", {})}
        for name, (kind, told) in named.items():
            assert kind in TYPES if isinstance(kind, str) else len(kind) > 1, name
            assert told["tooltip"], name
        taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
        assert named.keys() - taken.keys() <= {"weight", "priority", "edge", "keeps", "start", "end"}
        needed = {
            name
            for name, each in taken.items()
            if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
        }
        assert needed - {"self"} <= inputs["required"].keys()
        assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == 1
        assert node.CATEGORY == "Mix-of-Show"


def test_pictures_are_those_of_the_command(draws, command):
    assert np.array_equal(draws("a <cat>"), command("a <cat>"))
    assert np.array_equal(draws("a <cat>", own="off"), command("a <cat>", own=False))
    by_command = command("a <cat>", seeds=(3, 4), guidance=2.0, negative="red", width=96)
    assert np.array_equal(draws("a <cat>", count=2, guidance=2.0, negative="red", width=96), by_command)
    euler = command("a <dog>", scheduler="EulerDiscreteScheduler")
    assert np.array_equal(draws("a <dog>", scheduler="EulerDiscreteScheduler"), euler)
    assert np.array_equal(draws("a <cat>"), command("a <cat>")), "the scheduler of the model is its own again"


def test_regions_of_boxes_and_masks_are_those_of_the_command(nodes, draws, command):
    grey = torch.linspace(0, 1, 64).expand(1, 64, 64)
    (one,) = nodes.MixOfShowRegion().add("a <cat>", 0.0, 0.0, 0.5, 1.0, negative="red", weight=2.0, edge=0.1)
    (both,) = nodes.MixOfShowRegion().add("a <dog>", 0.0, 0.0, 0.5, 1.0, mask=grey, regions=one, end=0.8)
    shape = mask_of(Image.fromarray((grey[0] * 255).round().byte().numpy()))
    expected = [
        Region("a <cat>", Box(0, 0, 0.5, 1), "red", weight=2.0, edge=0.1),
        Region("a <dog>", shape, end=0.8),
    ]
    assert np.array_equal(draws("a place", regions=both), command("a place", regions=expected))
    with pytest.raises(ValueError, match="2 masks: a region has one"):
        nodes.MixOfShowRegion().add("a", 0.0, 0.0, 0.5, 1.0, mask=grey.expand(2, 64, 64))


def test_in_the_inference_mode_of_comfyui_the_same_is_drawn(nodes, model, draws):
    with torch.inference_mode():
        (pipe,) = nodes.MixOfShowModel().load(str(model), "tiny", "cpu", "float32")
        (images,) = nodes.MixOfShowDraw().draw(pipe, "a <cat>", seed=3, scheduler=nodes.OWN, **HOW)
        assert np.array_equal(np.rint(images.numpy() * 255).astype(np.uint8), draws("a <cat>"))


def test_a_model_is_loaded_again_when_it_or_its_own_changes_are_others(nodes, model, tmp_path):
    shutil.copytree(model.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / model.name
    first = nodes.MixOfShowModel.IS_CHANGED(str(copy), base="tiny")
    assert first == nodes.MixOfShowModel.IS_CHANGED(str(model), base="tiny")
    shutil.rmtree(own_folder(copy, "<cat>"))
    assert nodes.MixOfShowModel.IS_CHANGED(str(copy)) != first


def test_a_path_without_a_model_is_said_before_anything_runs(nodes, model):
    assert nodes.MixOfShowModel.VALIDATE_INPUTS(str(model)) is True
    assert "there is nothing at ''" in nodes.MixOfShowModel.VALIDATE_INPUTS("")
    assert "kit: there is nothing at '/nowhere'" in nodes.MixOfShowModel.VALIDATE_INPUTS(str(model), "/nowhere")
