"""Sprites in other manners, and the words for them."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from mos_tiny.recipe.restyle import MANNERS, caption_in_manner


@pytest.mark.parametrize("manner", MANNERS, ids=lambda manner: manner.redrawn.__name__)
def test_a_sprite_in_another_manner_stays_where_it_was(manner, world):
    for sprite in (world.icons["cactus"], world.characters.pictures[world.people[0]]):
        redrawn = manner.redrawn(sprite, Random(0))
        assert redrawn.shape == sprite.shape and redrawn.dtype == np.uint8
        assert (redrawn[..., :3] != sprite[..., :3]).any()
        solid, was = redrawn[..., 3] > 128, sprite[..., 3] > 128
        assert (solid & was).sum() > 0.85 * max(solid.sum(), was.sum()) - 0.2 * was.sum()


def test_lines_and_greys_have_no_colour_and_captions_name_none():
    blob = np.zeros((64, 64, 4), np.uint8)
    blob[20:44, 20:44] = (200, 30, 30, 255)
    blob[30:34, 30:34] = (30, 30, 200, 255)
    lines, greys = (next(m for m in MANNERS if m.words == words) for words in ("as a line drawing", "in grey"))
    drawn = lines.redrawn(blob, Random(0))
    assert len({tuple(pixel) for pixel in drawn[drawn[..., 3] > 0]}) == 2
    assert (drawn[20, 20:44] == drawn[20, 20]).all() and tuple(drawn[25, 25]) != tuple(drawn[20, 20])
    assert np.ptp(greys.redrawn(blob, Random(0))[..., :3].astype(int), axis=-1).max() == 0
    assert caption_in_manner("an orange umbrella", greys) == "an umbrella in grey"
    assert caption_in_manner("a dark-skinned man with short blond hair, toon style,", lines) == (
        "a man with short hair, toon style, as a line drawing,"
    )
    outlines = next(m for m in MANNERS if m.keeps_colours)
    assert caption_in_manner("a light-skinned old man", outlines) == f"an old man {outlines.words}"
