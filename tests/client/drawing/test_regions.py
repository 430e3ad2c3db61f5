"""Regions as texts, masks and painted pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mos_client.drawing.regions import parse_regions, read_layout, read_shape
from mos_common.errors import PicturesError, RequestError
from mos_common.regions import Region, check_masks
from mos_common.shapes import Box, Mask

FORM = r"PROMPT @ x0,y0,x1,y1"


@pytest.fixture
def mask(tmp_path) -> Path:
    """A mask whose left half is white."""
    drawn = Image.new("L", (8, 4))
    drawn.paste(255, (0, 0, 4, 4))
    drawn.save(tmp_path / "me@home.png")
    return tmp_path / "me@home.png"


@pytest.fixture
def painted(tmp_path) -> Path:
    """Red left, blue right, a strip of white below; the border is blended, as brushes do it."""
    drawn = Image.new("RGB", (16, 8), "white")
    ImageDraw.Draw(drawn).rectangle((0, 0, 7, 5), fill="#ff0000")
    ImageDraw.Draw(drawn).rectangle((8, 0, 15, 5), fill="#0000ff")
    ImageDraw.Draw(drawn).line((7, 0, 7, 5), fill="#d01010")
    drawn.save(tmp_path / "painted.png")
    return tmp_path / "painted.png"


def test_a_box_is_read_from_its_text():
    assert parse_regions(["<alice/cat> on a sofa @ 0, 0.25,0.5,1"]) == [
        Region("<alice/cat> on a sofa", Box(0, 0.25, 0.5, 1))
    ]


def test_the_last_at_sign_ends_the_prompt():
    assert parse_regions(["me @ home @ 0,0,1,1"])[0].prompt == "me @ home"
    assert parse_regions(["<cat>@0,0,1,1"])[0].prompt == "<cat>"


def test_a_mask_is_read_by_its_path(mask):
    (region,) = parse_regions([f"<cat> on a sofa @ {mask}"])
    assert region.prompt == "<cat> on a sofa"
    assert region.shape.cover(2, 4).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P"])
def test_masks_of_every_mode_mark_the_same(mask, tmp_path, mode):
    with Image.open(mask) as drawn:
        drawn.convert(mode).save(tmp_path / "other.png")
    assert read_shape(tmp_path / "other.png").grey == read_shape(mask).grey


def test_a_layer_of_one_colour_marks_by_its_alpha(tmp_path):
    drawn = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (0, 0, 2, 2))
    drawn.save(tmp_path / "layer.png")
    assert read_shape(tmp_path / "layer.png").cover(1, 2).tolist() == [[1, 0]]


def test_a_large_mask_is_made_smaller_and_covers_the_same(tmp_path):
    drawn = Image.new("L", (4096, 1024))
    drawn.paste(255, (0, 0, 1024, 1024))
    drawn.save(tmp_path / "large.png")
    found = read_shape(tmp_path / "large.png")
    assert (found.width, found.height) == (2048, 512)
    assert found.cover(1, 4).tolist() == [[1, 0, 0, 0]]


def test_each_colour_of_a_painted_picture_is_a_region(painted):
    left, right = parse_regions(["<cat> @ #ff0000", "<dog> @ blue"], painted)
    assert (left.prompt, right.prompt) == ("<cat>", "<dog>")
    expected = np.zeros((8, 16))
    expected[:6, :8] = 1
    np.testing.assert_array_equal(left.shape.cover(8, 16).numpy(), expected)
    np.testing.assert_array_equal(right.shape.cover(8, 16).numpy(), expected[:, ::-1])


def test_boxes_masks_and_colours_stand_side_by_side(painted, mask):
    regions = parse_regions(["a @ 0,0,1,1", f"b @ {mask}", "c @ red"], painted)
    assert [type(region.shape) for region in regions] == [Box, Mask, Mask]
    assert regions[2].shape.name == f"{painted} (red)"


def test_a_colour_that_is_nowhere_is_refused_with_those_that_are(painted):
    with pytest.raises(RequestError, match=r"nothing in .*painted\.png is painted lime; it has #0000ff, #ff0000, "):
        parse_regions(["<cat> @ lime"], painted)


def test_what_is_no_colour_is_refused(painted):
    with pytest.raises(RequestError, match=r"'reddish' is no colour: write it as #ff0000 or by name"):
        parse_regions(["<cat> @ reddish"], painted)


def test_a_painted_picture_that_nobody_uses_or_has_is_refused(painted, tmp_path):
    with pytest.raises(RequestError, match=r"--layout .*painted\.png is not used: give a --region with one of its"):
        parse_regions(["<cat> @ 0,0,1,1"], painted)
    with pytest.raises(RequestError, match=r"no painted picture at .*nowhere\.png"):
        read_layout(tmp_path / "nowhere.png")


@pytest.mark.parametrize(
    "text",
    ["", "<cat>", "<cat> @ 0,0,1", "<cat> @ a,b,c,d", "@ 0,0,1,1", "  @0,0,1,1", "0,0,1,1", "<cat> @ 0,0,1,1,1",
     "<cat> @", "<cat> @ nowhere.png", "<cat> @ #ff0000"],
)  # fmt: skip
def test_what_is_no_region_is_refused_with_the_forms_expected(text):
    with pytest.raises(RequestError, match=FORM):
        parse_regions([text])


@pytest.mark.parametrize("box", ["0.5,0,0.5,1", "0.5,0,0.2,1", "-0.1,0,1,1", "0,0,1,1.1", "nan,0,1,1", "0,0,inf,1"])
def test_an_impossible_box_is_refused_and_shown(box):
    with pytest.raises(RequestError, match=r"region '<cat> @ .*x0 < x1"):
        parse_regions([f"<cat> @ {box}"])


def test_a_mask_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(PicturesError, match=r"region .*mask .*text\.png cannot be read"):
        parse_regions([f"<cat> @ {tmp_path / 'text.png'}"])


def test_a_black_mask_is_refused_by_name(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    with pytest.raises(RequestError, match=r"mask .*black\.png: it is wholly black and marks nothing"):
        read_shape(tmp_path / "black.png")


def test_a_mask_of_another_shape_than_the_picture_is_refused_with_both_sizes(mask):
    regions = parse_regions([f"<cat> @ {mask}"])
    check_masks(regions, 64, 128)
    check_masks(regions, 62, 124)
    with pytest.raises(RequestError, match=r"mask .*home\.png is 8 x 4, the picture 64 x 64: give it the shape"):
        check_masks(regions, 64, 64)
