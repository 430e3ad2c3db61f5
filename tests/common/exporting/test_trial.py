"""`--test`: diffusers draws with the exported files what we draw with the same words."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from mos_common.concept_file import write_concept
from mos_common.drawing import Drawing
from mos_common.exporting import trial


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer steps and contexts."""
    monkeypatch.setattr(trial, "HOW", Drawing(steps=2))
    monkeypatch.setattr(trial, "SCORED", trial.SCORED[:2])


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        ("tiny", "lora"),
        ("tiny", "single-file"),
        ("tiny", "words"),
        ("tiny", "diffusers"),
        ("like_2", "single-file"),
        ("xl", "single-file"),
    ],
)
def test_the_road_through_diffusers_costs_nothing_and_one_embedding_does(
    kind, format, request, make_concept, quickly, tmp_path
):
    """The pictures lie beside the export: ours, ours with the exported words, theirs."""
    base = request.getfixturevalue(kind)
    write_concept(make_concept(base, "<cat>", strength=0.1), tmp_path / "cat.safetensors")
    before = [tensor.clone() for tensor in base.unet.state_dict().values()]
    out = tmp_path / ("out" if format == "diffusers" else "out.safetensors")
    *_, where, difference, identity = quickly(tmp_path / "cat.safetensors", base, format, out, test=True)
    picture = tmp_path / "out.test.png"
    assert where.startswith(f"{picture}: 'a photo of <cat>', seed 0")
    side = base.picture_size
    with Image.open(picture) as image:
        assert image.size == (3 * side, side)
    layerwise, same = map(float, re.findall(r"by (\d+\.\d+)", difference))
    assert same < 0.5 < layerwise
    assert re.fullmatch(
        r"<cat>: identity with drawings of layer-wise words: layer-wise words 0\.\d{3}, their mean 0\.\d{3}, "
        r"exported 0\.\d{3}",
        identity,
    )
    assert all(torch.equal(one, other) for one, other in zip(before, base.unet.state_dict().values(), strict=True))
