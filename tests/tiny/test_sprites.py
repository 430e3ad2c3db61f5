"""Colours of sprites."""

from __future__ import annotations

import numpy as np

from mos_tiny.recipe.sprites import to_hsv, to_rgb


def test_colours_turn_and_turn_back():
    colours = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    np.testing.assert_allclose(to_rgb(to_hsv(colours)), colours, atol=1e-5)
