"""Drawn pictures as files: the suffix says what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mos_common.errors import RequestError
from mos_common.pictures import as_image, picture_format, save_picture

SMOOTH = torch.linspace(-1, 1, 64).expand(3, 64, 64)


@pytest.mark.parametrize(
    ("name", "kind"), [("x.png", "PNG"), ("x.jpg", "JPEG"), ("x.JPEG", "JPEG"), ("x.webp", "WEBP")]
)
def test_a_picture_is_what_its_suffix_says(tmp_path, name, kind):
    save_picture(SMOOTH, tmp_path / name)
    with Image.open(tmp_path / name) as read:
        assert read.format == kind
        difference = np.abs(np.asarray(read.convert("RGB"), float) - np.asarray(as_image(SMOOTH), float)).max()
    assert difference <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("name", ["x", "x.txt", "x.safetensors", "x.png.gz", ".png"])
def test_another_suffix_is_refused_with_those_that_work(name):
    with pytest.raises(RequestError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        picture_format(Path(name))
