"""The two adapters that come with `tiny`: small, and followed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mos_common.base_model import Base
from mos_common.control.adapters import Adapter, read_adapter
from mos_tiny import adapter_folders
from mos_tiny.recipe.control.conditions import Kind
from mos_tiny.recipe.control.measure import agreement, followed

MOST_BYTES = 150_000


def adapter(name: str, base: Base) -> Adapter:
    return read_adapter(adapter_folders()[name], base, name)


@pytest.mark.parametrize(("name", "channels"), [("sketch", 1), ("keypoints", 3)])
def test_each_is_small_and_reads_what_it_says(name, channels, tiny):
    files = [file for file in adapter_folders()[name].iterdir() if file.is_file()]
    assert {file.name for file in files} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    assert adapter(name, tiny).channels == channels
    assert str(Path.home()) not in (adapter_folders()[name] / "config.json").read_text()


@pytest.mark.parametrize("kind", list(Kind))
def test_drawings_follow_their_own_condition_and_not_another(kind, tiny):
    if kind is Kind.SKETCH:
        pytest.importorskip("cv2")
    found = followed(tiny, adapter(kind.value, tiny), kind, count=6, steps=6)
    assert found["with"] > found["without"] + 0.05
    assert found["with"] > found["another"] + 0.1


def test_edges_agree_with_themselves_and_with_none_that_are_elsewhere():
    left, right = torch.ones(2, 1, 3, 32, 32).unbind()
    left, right = left.clone(), right.clone()
    left[..., 4:10, 4:10] = -1
    right[..., 20:26, 20:26] = -1
    assert agreement(left, left) == 1
    assert agreement(left, right) == 0
