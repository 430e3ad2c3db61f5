"""Masks: which channel marks the concept, and what is odd about one."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mos_client.pictures.folder import Picture
from mos_client.pictures.masks import marks_nothing
from mos_client.pictures.reading import read_mask
from mos_common.errors import PicturesError

SIZE = (80, 80)
DISC = Image.new("L", SIZE)
ImageDraw.Draw(DISC).ellipse((20, 20, 60, 60), fill=255)
FULL = Image.new("L", SIZE, 255)


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 80, 3), dtype=np.uint8))


@pytest.mark.parametrize("alpha", [255, 128, 0])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_alpha_that_is_the_same_everywhere_says_nothing(tmp_path, mode, alpha):
    """GIMP, Photoshop and web tools save masks with an opaque alpha channel."""
    bands = [DISC] * (3 if mode == "RGBA" else 1)
    Image.merge(mode, [*bands, Image.new("L", SIZE, alpha)]).save(tmp_path / "a.mask.png")
    assert read_mask(tmp_path / "a.mask.png", SIZE).tobytes() == DISC.tobytes()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 30)])
def test_paint_of_one_colour_on_a_transparent_layer_marks_by_its_alpha(tmp_path, colour):
    layer = Image.new("RGB", SIZE, colour)
    layer.putalpha(DISC)
    layer.save(tmp_path / "a.mask.png")
    assert read_mask(tmp_path / "a.mask.png", SIZE).tobytes() == DISC.tobytes()


def test_a_photograph_with_its_background_cut_away_marks_by_its_alpha(tmp_path):
    photograph = noise()
    photograph.putalpha(DISC)
    photograph.save(tmp_path / "a.mask.png")
    assert read_mask(tmp_path / "a.mask.png", SIZE).tobytes() == DISC.tobytes()


def test_black_and_white_with_a_transparent_part_is_two_masks_and_refused(tmp_path):
    alpha = FULL.copy()
    alpha.paste(0, (0, 0, 80, 10))
    Image.merge("LA", [DISC, alpha]).save(tmp_path / "a.mask.png")
    with pytest.raises(PicturesError, match=r"a\.mask\.png is black and white on a partly transparent.*without transp"):
        read_mask(tmp_path / "a.mask.png", SIZE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp", "bmp", "gif"])
def test_a_disc_is_a_disc_in_every_mode_and_format(tmp_path, mode, suffix):
    try:
        DISC.convert(mode).save(tmp_path / f"a.mask.{suffix}")
    except (OSError, ValueError):
        pytest.skip("no such mode in this format")
    read = np.asarray(read_mask(tmp_path / f"a.mask.{suffix}", SIZE)) >= 128
    assert (read == (np.asarray(DISC) >= 128)).mean() > 0.98


def test_a_palette_with_a_transparent_entry_marks_what_is_not_transparent(tmp_path):
    picture = DISC.point(lambda x: x // 255).convert("P")
    picture.putpalette([10, 10, 10, 200, 30, 30])
    picture.save(tmp_path / "a.mask.png", transparency=0)
    assert read_mask(tmp_path / "a.mask.png", SIZE).tobytes() == DISC.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_with_its_picture_s_exif_data_is_turned_with_it(tmp_path, orientation):
    """The stored pixels of picture and mask are the same, so they stay the same when turned."""
    stored = DISC.resize((80, 40)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    stored.save(tmp_path / "a.mask.png", exif=exif)
    read = Picture(tmp_path / "a.png", mask_file=tmp_path / "a.mask.png").read()
    assert read.mask.tobytes() == read.picture.convert("L").tobytes()


def test_a_mask_drawn_on_the_stored_pixels_of_a_turned_picture_is_explained(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().resize((80, 40)).save(tmp_path / "a.jpg", exif=exif)
    DISC.resize((80, 40)).save(tmp_path / "a.mask.png")
    with pytest.raises(PicturesError, match=r"is 80 x 40, its picture 40 x 80: its picture is turned by its EXIF data"):
        Picture(tmp_path / "a.jpg", mask_file=tmp_path / "a.mask.png").read()
    DISC.resize((40, 80)).save(tmp_path / "a.mask.png")
    assert Picture(tmp_path / "a.jpg", mask_file=tmp_path / "a.mask.png").read().mask.size == (40, 80)


@pytest.mark.parametrize(
    ("grey", "said", "counts"),
    [
        (0, "is wholly black: it marks nothing and is left out", False),
        (1, "is nearly black (its brightest value is 1 of 255): it marks nothing", False),
        (255, "is wholly white: it marks the whole picture", True),
    ],
)
def test_a_mask_that_marks_nothing_or_everything_is_said(tmp_path, grey, said, counts):
    noise().save(tmp_path / "a.png")
    Image.new("L", SIZE, grey).save(tmp_path / "a.mask.png")
    read = Picture(tmp_path / "a.png", mask_file=tmp_path / "a.mask.png").read()
    (doubt,) = read.doubts
    assert doubt.startswith("has a mask a.mask.png that " + said)
    assert (read.mask is not None) == counts


def test_a_mask_file_counts_before_the_picture_s_own_transparency_and_this_is_said(tmp_path):
    cut_out = noise()
    cut_out.putalpha(DISC)
    cut_out.save(tmp_path / "a.png")
    assert Picture(tmp_path / "a.png").read().mask.tobytes() == DISC.tobytes()
    half = FULL.copy()
    half.paste(0, (0, 0, 40, 80))
    half.save(tmp_path / "a.mask.png")
    read = Picture(tmp_path / "a.png", mask_file=tmp_path / "a.mask.png").read()
    assert read.mask.tobytes() == half.tobytes()
    assert read.notes == ("is partly transparent, but its mask is a.mask.png",)
    FULL.point(lambda _: 0).save(tmp_path / "a.mask.png")
    assert Picture(tmp_path / "a.png", mask_file=tmp_path / "a.mask.png").read().mask.tobytes() == DISC.tobytes()


def test_a_mask_marks_something_from_the_middle_of_the_greys_on():
    assert marks_nothing(Image.new("L", (2, 2), 127))
    assert not marks_nothing(Image.new("L", (2, 2), 128))
