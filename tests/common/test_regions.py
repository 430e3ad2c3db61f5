"""Regions: the share of each in every cell, by priority, weight, edge, and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mos_common.errors import RequestError
from mos_common.regions import Region, RegionShares, shares
from mos_common.shapes import Box, Mask

EVERYWHERE = Box(0, 0, 1, 1)
HERE = torch.device("cpu")


def one_cell(*regions: Region) -> list[float]:
    """Return the shares in a picture of one cell."""
    return shares(regions, 1, 1).flatten().tolist()


def test_alone_a_region_has_all_of_its_cells_and_nothing_else():
    assert shares([Region("a", Box(0, 0, 0.5, 1))], 1, 4).tolist() == [[[1, 1, 0, 0]]]


def test_overlaps_of_one_priority_are_averaged():
    share = shares([Region("a", Box(0, 0, 0.75, 1)), Region("b", Box(0.5, 0, 1, 0.5))], 2, 4)
    assert share.flatten(1).tolist() == [
        [1, 1, 0.5, 0, 1, 1, 1, 0],
        [0, 0, 0.5, 1, 0, 0, 0, 0],
    ]


def test_weights_count_where_regions_overlap_and_only_there():
    share = shares([Region("a", Box(0, 0, 0.75, 1), weight=3), Region("b", Box(0.25, 0, 1, 1))], 1, 4)
    assert share.flatten(1).tolist() == [[1, 0.75, 0.75, 0], [0, 0.25, 0.25, 1]]


def test_a_higher_priority_takes_the_overlap_whatever_the_order_and_the_weight():
    low, high = Region("a", EVERYWHERE, weight=9), Region("b", Box(0, 0, 0.5, 1), priority=1)
    assert shares([low, high], 1, 2).tolist() == [[[0, 1]], [[1, 0]]]
    assert shares([high, low], 1, 2).tolist() == [[[1, 0]], [[0, 1]]]


def test_a_lower_priority_gets_what_is_left_of_a_cell():
    """Of one cell the first takes 0.6; 0.4 are left for two that would cover 0.5 and 0.3."""
    regions = [
        Region("a", Box(0, 0, 0.6, 1), priority=2),
        Region("b", Box(0, 0, 0.5, 1)),
        Region("c", Box(0, 0, 0.3, 1)),
    ]
    np.testing.assert_allclose(one_cell(*regions), [0.6, 0.4 * 5 / 8, 0.4 * 3 / 8], rtol=1e-6)


def test_what_a_region_keeps_is_the_picture_s_and_no_lower_region_s():
    kept = Region("a", EVERYWHERE, priority=1, keeps=0.25)
    assert one_cell(kept, Region("b", EVERYWHERE)) == [0.75, 0]


def test_neighbours_leave_nothing_out_and_take_nothing_twice_also_within_a_cell():
    for width in (2, 3, 5, 8, 16):
        share = shares([Region("a", Box(0, 0, 0.37, 1)), Region("b", Box(0.37, 0, 1, 1))], 4, width)
        torch.testing.assert_close(share.sum(dim=0), torch.ones(4, width))


@given(
    st.lists(
        st.tuples(*[st.floats(0, 1, width=32)] * 4, st.integers(-1, 1), st.floats(0.1, 5), st.floats(0, 1)),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_shares_are_never_negative_and_never_more_than_a_cell(drawn, height, width):
    regions = [
        Region("p", Box(min(a, c), min(b, d), max(a, c), max(b, d)), priority=p, weight=w, edge=e)
        for a, b, c, d, p, w, e in drawn
        if a != c and b != d
    ]
    if not regions:
        return
    share = shares(regions, height, width)
    assert share.min() >= 0
    assert share.sum(dim=0).max() <= 1 + 1e-5


def test_a_region_holds_from_its_start_until_its_end():
    region = Region("a", EVERYWHERE, start=0.25, end=0.75)
    assert [region.holds(step / 4) for step in range(4)] == [False, True, True, False]
    assert all(Region("a", EVERYWHERE).holds(step / 7) for step in range(7))


def test_only_regions_that_hold_have_shares_and_the_others_close_ranks():
    """When the first ends, the second has the overlap for itself."""
    regions = [Region("a", EVERYWHERE, priority=1, end=0.5), Region("b", Box(0, 0, 0.5, 1))]
    placed = RegionShares(regions, (2, 2), HERE)
    assert (placed.active(0.0), placed.active(0.5)) == ((0, 1), (1,))
    assert placed.at(0.0, 4).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert placed.at(0.5, 4).tolist() == [[1, 0, 1, 0]]


def test_where_no_region_holds_there_are_no_shares_on_any_map():
    placed = RegionShares([Region("a", EVERYWHERE, start=0.5)], (4, 6), HERE)
    assert [tuple(placed.at(0.0, cells).shape) for cells in (24, 6, 2)] == [(0, 24), (0, 6), (0, 2)]


@pytest.mark.parametrize("size", [(18, 26), (9, 13), (16, 24), (7, 1)])
def test_a_cell_of_a_smaller_map_has_the_mean_of_the_cells_that_it_stands_for(size):
    """The other road: slices of two (four) rows and columns, shorter at an odd end, in numpy."""
    grey = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    placed = RegionShares([Region("a", Mask(size[1], size[0], grey.tobytes()))], size, HERE)
    for side in (1, 2, 4):
        rows, columns = range(0, size[0], side), range(0, size[1], side)
        expected = [[grey[y : y + side, x : x + side].mean() / 255 for x in columns] for y in rows]
        found = placed.at(0.0, len(rows) * len(columns)).reshape(len(rows), len(columns))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_shares_are_decided_on_the_latents_so_that_overlaps_are_no_blend_of_coarser_cells():
    """The left of two cells is half the first's and half the second's; they do not overlap."""
    regions = [Region("a", Box(0, 0, 0.25, 1)), Region("b", Box(0.25, 0, 0.5, 1))]
    assert RegionShares(regions, (1, 4), HERE).at(0.0, 2).tolist() == [[0.5, 0], [0.5, 0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": "  "}, "a region has no prompt"),
        ({"weight": 0}, "weight 0: expected a number above 0"),
        ({"weight": float("nan")}, "weight nan: expected a number above 0"),
        ({"edge": 1.5}, "edge 1.5: expected a share from 0 to 1"),
        ({"keeps": -0.1}, "keeps -0.1: expected a share from 0 to 1"),
        ({"start": 0.5, "end": 0.5}, "start 0.5 and end 0.5: expected shares of the steps, 0 to 1, in order"),
        ({"end": 1.1}, "end 1.1"),
    ],
)
def test_impossible_values_are_refused_with_the_region_they_are_of(wrong, message):
    with pytest.raises(RequestError, match=message):
        Region(**{"prompt": "a cat", "shape": EVERYWHERE, **wrong})
