"""Boxes and masks: which part of each cell they cover, soft edges, sizes of feature maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mos_common.errors import RequestError
from mos_common.shapes import Box, Mask, feature_maps, softened


def test_the_left_half_of_two_by_four_cells():
    assert Box(0, 0, 0.5, 1).cover(2, 4).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


def test_a_box_covers_the_part_of_a_cell_that_lies_in_it():
    """Three columns end at 1/3, 2/3, 1; of two rows the box has the lower half of the upper."""
    expected = torch.tensor([[0.4, 1, 0.1], [0, 0, 0]]) * 0.5
    torch.testing.assert_close(Box(0.2, 0.25, 0.7, 0.5).cover(2, 3).float(), expected)


@given(st.tuples(*[st.floats(0, 1, width=32)] * 4), st.integers(1, 40), st.integers(1, 40))
def test_the_cells_of_a_box_add_up_to_its_area(sides, height, width):
    (a, c), (b, d) = sorted(sides[::2]), sorted(sides[1::2])
    if a == c or b == d:
        return
    area = Box(a, b, c, d).cover(height, width).mean()
    torch.testing.assert_close(float(area), (c - a) * (d - b), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sides", [(0.5, 0, 0.5, 1), (0.5, 0, 0.2, 1), (-0.1, 0, 1, 1), (0, 0, 1, 1.1)])
def test_an_impossible_box_is_refused_and_shown(sides):
    with pytest.raises(RequestError, match=r"expected x0,y0,x1,y1 with x0 < x1"):
        Box(*sides)


def mask_of(rows: np.ndarray) -> Mask:
    return Mask(rows.shape[1], rows.shape[0], rows.astype(np.uint8).tobytes())


@pytest.mark.parametrize("size", [(4, 6), (9, 13), (5, 7), (31, 2), (1, 1)])
def test_a_mask_is_averaged_over_every_cell_where_sizes_do_not_divide(size):
    """The other road: each pixel cut into the cells' pieces, in whole numbers."""
    height, width = size
    rows = np.random.default_rng(0).integers(0, 256, (10, 12))
    fine = rows.repeat(height, axis=0).repeat(width, axis=1)  # as many parts a pixel as there are cells
    expected = fine.reshape(height, 10, width, 12).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(mask_of(rows).cover(height, width).numpy(), expected, rtol=1e-6)


def test_a_mask_of_a_whole_number_of_pixels_a_cell_is_what_pillow_averages():
    rows = np.random.default_rng(1).integers(0, 256, (32, 48))
    by_pillow = np.asarray(Image.fromarray(rows.astype(np.float32)).resize((12, 8), Image.Resampling.BOX)) / 255
    np.testing.assert_allclose(mask_of(rows).cover(8, 12).numpy(), by_pillow, rtol=1e-5)


def test_a_mask_that_marks_nothing_is_refused_by_name():
    with pytest.raises(RequestError, match=r"mask black\.png: it is wholly black"):
        Mask(2, 1, bytes(2), "black.png")


def test_equal_masks_are_equal_values():
    assert len({mask_of(np.ones((2, 3))), mask_of(np.ones((2, 3))), mask_of(np.ones((3, 2)))}) == 2


def test_a_soft_edge_is_a_ramp_with_its_middle_on_the_edge():
    """Half of a picture of eight cells with an edge of half its side: a ramp over four cells."""
    ramp = softened(Box(0, 0, 0.5, 1).cover(8, 8), 0.5)
    np.testing.assert_allclose(ramp[3].numpy(), [1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0], atol=1e-12)


def test_the_border_of_the_picture_is_no_edge():
    assert torch.allclose(softened(Box(0, 0, 1, 1).cover(7, 9), 0.8), torch.ones(7, 9, dtype=torch.float64))


@given(st.floats(0.01, 0.99), st.floats(0, 1), st.integers(1, 20), st.integers(1, 20))
def test_soft_edges_of_neighbours_add_up_to_one(middle, edge, height, width):
    left, right = (softened(box.cover(height, width), edge) for box in (Box(0, 0, middle, 1), Box(middle, 0, 1, 1)))
    torch.testing.assert_close(left + right, torch.ones(height, width, dtype=torch.float64))


def test_a_wide_picture_has_edges_as_wide_as_high():
    """In cells: an edge of half the shorter side, 4 cells, in both directions."""
    across, down = (softened(box.cover(8, 32), 0.5) for box in (Box(0.25, 0, 0.75, 1), Box(0, 0.5, 1, 1)))
    torch.testing.assert_close(across[0, 4:12].flip(0), 1 - across[0, 4:12])
    torch.testing.assert_close(across[0, 6:10], down[2:6, 0])


@pytest.mark.parametrize("size", [(18, 26), (16, 16), (17, 3), (9, 13)])
def test_feature_maps_are_those_that_the_unet_has(tiny, size):
    """The other road: what the UNet's transformers get while it runs, also at odd sizes."""
    seen, handles = [], []
    for name, module in tiny.unet.named_modules():
        if name.endswith(".attentions.0"):
            handles.append(module.register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape[2:]))))
    try:
        with torch.no_grad():
            text = torch.randn(1, tiny.text_length, tiny.token_table.shape[1])
            tiny.unet(torch.randn(1, 4, *size), torch.tensor([500]), encoder_hidden_states=text)
    finally:
        for handle in handles:
            handle.remove()
    assert len(set(seen)) == 2
    assert set(seen) <= set(feature_maps(*size).values())
    assert all(feature_maps(*size)[height * width] == (height, width) for height, width in seen)
