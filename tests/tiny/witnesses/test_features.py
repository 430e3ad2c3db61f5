"""Backgrounds and hues are named without learning."""

from __future__ import annotations

import numpy as np
import torch

from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.scenes import flat
from mos_tiny.recipe.sprites import to_rgb
from mos_tiny.recipe.witnesses.features import flat_background, main_hue
from mos_tiny.recipe.world import HUES, PALETTE


def test_flat_backgrounds_and_hues_are_named():
    assert flat_background(as_tensor(np.stack([flat(c, 64).astype(np.uint8) for c in PALETTE]))) == list(PALETTE)
    for name, hue in HUES.items():
        picture = np.full((64, 64, 3), 245, np.uint8)
        picture[20:40, 20:40] = to_rgb(np.array([hue, 0.9, 0.9], np.float32)) * 255
        assert main_hue(as_tensor(picture[None])[0]) == name
    assert main_hue(torch.ones(3, 64, 64)) == "none"
