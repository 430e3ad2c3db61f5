"""What `from mos_common import ...` offers to Python programs."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import mos_common
from mos_common import Drawing, attached, draw, save_picture


def test_every_public_name_is_there_and_listed():
    for name in mos_common.__all__:
        assert getattr(mos_common, name).__name__ == name
    assert set(mos_common.__all__) <= set(dir(mos_common))


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'paint'"):
        mos_common.paint  # noqa: B018


def test_importing_the_package_loads_no_heavy_library():
    code = "import json, sys, mos_common; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
    assert not {"torch", "diffusers", "transformers", "PIL", "pydantic"} & set(loaded)


def test_a_picture_is_drawn_and_saved_by_the_public_names(tiny, make_concept, tmp_path):
    """The bytes of the file are the drawing in 256 steps."""
    how = Drawing(steps=1)
    with attached(tiny, make_concept(tiny).pairs):
        (picture,) = draw(tiny, ["a cat"], seeds=[0], how=how)
    save_picture(picture, tmp_path / "cat.png")
    stored = torch.from_numpy(np.array(Image.open(tmp_path / "cat.png"))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(stored.float(), picture, rtol=0, atol=1 / 254)
