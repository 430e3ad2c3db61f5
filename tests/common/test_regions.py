"""Regions: which cells they are, how overlaps share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mos_common.errors import RequestError
from mos_common.regions import Region, parse_region, shares


def cells(box: tuple[float, float, float, float], height: int, width: int) -> list[list[int]]:
    return Region("p", *box).cells(height, width).int().tolist()


def test_the_left_half_of_two_by_four_cells():
    assert cells((0, 0, 0.5, 1), 2, 4) == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_the_lower_right_quarter_of_four_by_four_cells():
    assert cells((0.5, 0.5, 1, 1), 4, 4) == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_a_cell_belongs_to_the_box_its_centre_lies_in():
    """Centres of three columns: 1/6, 1/2, 5/6."""
    assert cells((0.2, 0, 0.6, 1), 1, 3) == [[0, 1, 0]]
    assert cells((0.1, 0, 0.6, 1), 1, 3) == [[1, 1, 0]]


def test_a_box_smaller_than_a_cell_keeps_the_cell_of_its_centre():
    assert cells((0.6, 0.6, 0.7, 0.7), 2, 2) == [[0, 0], [0, 1]]
    assert cells((0.99, 0.99, 1, 1), 1, 1) == [[1]]


def test_neighbouring_boxes_share_no_cell_and_leave_none_out():
    left, right = Region("a", 0, 0, 0.37, 1), Region("b", 0.37, 0, 1, 1)
    for width in (2, 3, 5, 8, 16):
        together = left.cells(4, width).int() + right.cells(4, width).int()
        assert (together == 1).all()


def test_overlaps_are_averaged_and_outside_is_zero():
    share = shares([Region("a", 0, 0, 0.75, 1), Region("b", 0.5, 0, 1, 0.5)], 2, 4)
    assert share.tolist() == [
        [1, 1, 0.5, 0, 1, 1, 1, 0],
        [0, 0, 0.5, 1, 0, 0, 0, 0],
    ]


@given(
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_shares_of_a_cell_add_up_to_one_or_nothing(boxes, height, width):
    regions = [Region("p", min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes if a != c and b != d]
    if not regions:
        return
    total = shares(regions, height, width).sum(dim=0)
    torch.testing.assert_close(total, (total > 0).float())
    assert (shares(regions, height, width).sum(dim=1) > 0).all(), "every region has a cell"


def test_a_region_is_read_from_its_text():
    assert parse_region("<alice/cat> on a sofa @ 0, 0.25,0.5,1") == Region("<alice/cat> on a sofa", 0, 0.25, 0.5, 1)


def test_the_last_at_sign_ends_the_prompt():
    assert parse_region("me @ home @ 0,0,1,1").prompt == "me @ home"


@pytest.mark.parametrize(
    "text", ["", "<cat>", "<cat> @ 0,0,1", "<cat> @ a,b,c,d", "@ 0,0,1,1", "  @0,0,1,1", "0,0,1,1", "<cat> @ 0,0,1,1,1"]
)
def test_what_is_no_region_is_refused_with_the_form_expected(text):
    with pytest.raises(RequestError, match=r"PROMPT @ x0,y0,x1,y1"):
        parse_region(text)


@pytest.mark.parametrize("box", ["0.5,0,0.5,1", "0.5,0,0.2,1", "-0.1,0,1,1", "0,0,1,1.1", "nan,0,1,1", "0,0,inf,1"])
def test_an_impossible_box_is_refused_and_shown(box):
    with pytest.raises(RequestError, match="x0 < x1"):
        parse_region(f"<cat> @ {box}")
