"""The bench of spatial control: what is composed, and what counts as missing and as bound."""

from __future__ import annotations

import numpy as np
import torch

from mos_bench.control import SIDE, THINGS, WIDTH, compositions, verdict_of
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.scenes import flat
from mos_tiny.recipe.world import HUES


def test_things_differ_in_noun_and_colour_and_stand_in_their_regions():
    """The real picture is the white of the world outside of the regions."""
    for each in compositions(4, World(), seed=1):
        colours, nouns = zip(*each.things, strict=True)
        assert len(set(colours)) == len(set(nouns)) == THINGS
        assert all(f"{colour} {noun}" in each.prompt for colour, noun in each.things)
        covered = sum(region.cover(SIDE, WIDTH) for region in each.regions).numpy()
        assert (each.real[covered == 0] == flat("white", 1)[0, 0].astype(np.uint8)).all()
        assert (each.real < 128).any()


def test_more_compositions_begin_with_the_same_ones():
    few, many = (list(compositions(count, World(), seed=1)) for count in (2, 3))
    assert all(np.array_equal(a.real, b.real) for a, b in zip(few, many, strict=False))


def test_a_thing_is_there_if_some_view_shows_it_and_bound_if_that_view_has_its_colour():
    """One view in the first picture is red, all of the second are white; all are called cars."""
    pictures = torch.ones(2, 3, SIDE, WIDTH)
    pictures[0, 1:, :, :SIDE] = -1  # the left third is red
    assert next(iter(HUES)) == "red"
    truths = [[("red", "car"), ("blue", "car"), ("red", "cup")]] * 2
    verdict = verdict_of(lambda views: ["car"] * len(views), "prompt", pictures, truths)
    assert verdict.pictures == 2
    assert verdict.missing == 1 - 4 / 6  # both cups are
    assert verdict.bound == 1 / 4  # of four cars one has its colour
