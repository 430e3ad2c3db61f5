"""Recommended settings follow a model's sizes, not the name it is found under."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mos_common.base_model import base_path, load_base
from mos_common.presets import STABLE_DIFFUSION, TINY, preset_for
from reference.checkpoints import miniature


@pytest.mark.parametrize("form", ["folder", "checkpoint"])
def test_a_model_of_tiny_s_sizes_has_its_preset_in_any_form(tiny, tmp_path, form):
    path = tmp_path / "drawn.safetensors"
    if form == "folder":
        path = Path(shutil.copytree(base_path("tiny"), tmp_path / "drawn"))
    else:
        miniature(base_path("tiny")).write(path)
    loaded = load_base(str(path), device="cpu")
    assert loaded.fingerprint == tiny.fingerprint
    assert loaded.preset is TINY


def test_a_checkpoint_called_tiny_is_what_it_is(sixteen, random_base_folder, tmp_path):
    file = miniature(random_base_folder()).write(tmp_path / "tiny.safetensors")
    assert load_base(str(file), device="cpu").preset is STABLE_DIFFUSION
    assert sixteen.preset is STABLE_DIFFUSION


def test_before_a_model_is_open_its_name_must_do():
    assert preset_for("tiny") is TINY
    assert preset_for("tiny.safetensors") is STABLE_DIFFUSION
