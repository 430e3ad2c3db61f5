"""Picture files: their formats, orientation, transparency and damage."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from mos_client.pictures import reading
from mos_client.pictures.reading import open_picture, read_mask, read_picture
from mos_common.errors import PicturesError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)

EXIF = Image.Exif()
EXIF[0x0112] = 6


def halves(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 8 x 4 pixels."""
    picture = Image.new("RGB", (8, 4), RED)
    picture.paste(BLUE, (4, 0, 8, 4))
    return picture.convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_the_camera_was_held(tmp_path, orientation):
    """The reference turns the stored rows by hand, as EXIF defines them."""
    upright = halves()
    back = {  # the rows that a camera stores for `upright` at this `orientation`
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright.transpose(back) if back is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert open_picture(tmp_path / "a.png").tobytes() == upright.tobytes()


def test_transparent_parts_are_white_and_half_transparent_ones_mixed(tmp_path):
    picture = Image.new("RGBA", (3, 1))
    picture.putpixel((0, 0), (255, 0, 0, 255))
    picture.putpixel((1, 0), (255, 0, 0, 0))
    picture.putpixel((2, 0), (0, 0, 0, 51))
    picture.save(tmp_path / "a.png")
    opened = open_picture(tmp_path / "a.png")
    assert [opened.getpixel((x, 0)) for x in range(3)] == [RED, WHITE, (204, 204, 204)]


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"),
        ("1", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("LA", "png"),
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("I;16", "png"),
    ],
)
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    if mode == "I;16":
        Image.new(mode, (8, 4), 65535).save(path)
        assert open_picture(path).getpixel((1, 1)) == WHITE
        return
    halves(mode).save(path)
    opened = open_picture(path)
    assert opened.mode == "RGB"
    assert opened.size == (8, 4)
    if mode in ("P", "CMYK"):
        assert opened.getpixel((0, 2))[0] > 200 > 60 > opened.getpixel((0, 2))[2]
        assert opened.getpixel((7, 2))[2] > 200 > 60 > opened.getpixel((7, 2))[0]
    else:
        assert len(set(opened.getpixel((0, 2)))) == 1


def test_a_palette_with_a_transparent_colour_is_on_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.gif", transparency=1)
    opened = open_picture(tmp_path / "a.gif")
    assert [opened.getpixel((x, 0)) for x in range(2)] == [RED, WHITE]


@settings(max_examples=250)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damaged_bytes_are_never_more_than_a_pictures_error(tmp_path_factory, kind, data):
    buffer = io.BytesIO()
    halves().save(buffer, format=kind, exif=EXIF) if kind not in ("GIF", "BMP") else halves().save(buffer, format=kind)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    with warnings.catch_warnings(action="ignore"), suppress(PicturesError):
        assert open_picture(path).mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_broken_picture_is_named(tmp_path, content):
    (tmp_path / "03.png").write_bytes(content)
    with pytest.raises(PicturesError, match=r"03\.png cannot be read.*repair it or remove it"):
        open_picture(tmp_path / "03.png")


def test_a_picture_cut_off_in_the_middle_is_named(make_pictures):
    path = make_pictures(1) / "00.png"
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(PicturesError, match=r"00\.png"):
        open_picture(path)


def test_a_picture_beyond_the_cap_is_refused_unread(make_pictures, monkeypatch):
    monkeypatch.setattr(reading, "MAX_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was unpacked"))
    with pytest.raises(PicturesError, match=r"00\.png has 64 x 64 pixels, more than 4,095"):
        open_picture(make_pictures(1) / "00.png")


def test_a_decompression_bomb_is_a_pictures_error(make_pictures, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 64 * 64 // 3)
    with pytest.raises(PicturesError, match=r"00\.png"):
        open_picture(make_pictures(1) / "00.png")


@pytest.mark.parametrize(
    ("side", "said"), [(9_700, "9700 x 9700 pixels, more than 64,000,000"), (60_000, "far more than 64,000,000")]
)
def test_a_header_that_promises_a_bomb_is_enough_to_refuse_it(tmp_path, side, said):
    """A real PNG with a false size in its header; Pillow only warns about the smaller one."""
    halves().save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(PicturesError, match=rf"bomb\.png has {said}.*make it smaller"):
        open_picture(tmp_path / "bomb.png")
    with pytest.raises(PicturesError, match="make it smaller"):
        read_mask(tmp_path / "bomb.png", (8, 8))


@pytest.mark.parametrize(("suffix", "how"), [("webp", {"lossless": True, "exact": True}), ("avif", {"quality": 100})])
def test_webp_and_avif_are_read_with_their_transparency(tmp_path, suffix, how):
    if not features.check(suffix):
        pytest.skip(f"this Pillow was built without {suffix}")
    picture = halves("RGBA").resize((64, 32), Image.Resampling.NEAREST)
    picture.paste((0, 0, 0, 0), (0, 0, 16, 32))
    picture.save(tmp_path / f"a.{suffix}", **how)
    read = read_picture(tmp_path / f"a.{suffix}")
    for x, colour in ((4, WHITE), (24, RED), (56, BLUE)):
        assert read.picture.getpixel((x, 16)) == pytest.approx(colour, abs=8)
    assert [read.mask.getpixel((x, 16)) for x in (4, 24, 56)] == [0, 255, 255]


def test_heic_without_its_plug_in_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reading.can_read_heic.cache_clear()
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(PicturesError, match=r"phone\.heic is HEIC, which needs the package pillow-heif"):
        open_picture(tmp_path / "phone.heic")
    reading.can_read_heic.cache_clear()


def test_heic_is_read_where_its_plug_in_is_installed(tmp_path):
    reading.can_read_heic.cache_clear()
    assert reading.can_read_heic()
    halves().resize((64, 32), Image.Resampling.NEAREST).save(tmp_path / "phone.heic")
    opened = open_picture(tmp_path / "phone.heic")
    assert opened.size == (64, 32)
    assert opened.getpixel((4, 16))[0] > 200 > 60 > opened.getpixel((4, 16))[2]


def test_a_cut_out_is_a_mask_and_an_opaque_picture_has_none(tmp_path):
    picture = Image.new("RGBA", (8, 4), (255, 0, 0, 255))
    picture.paste((0, 0, 0, 0), (4, 0, 8, 4))
    picture.save(tmp_path / "a.png")
    mask = read_picture(tmp_path / "a.png").mask
    assert np.asarray(mask).tolist() == [[255] * 4 + [0] * 4] * 4
    Image.new("RGBA", (8, 4), (255, 0, 0, 255)).save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").mask is None
    Image.new("RGBA", (8, 4), (255, 0, 0, 0)).save(tmp_path / "c.png")
    assert read_picture(tmp_path / "c.png").mask is None, "nothing at all is no mask"


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "LA"])
def test_a_mask_is_white_where_the_concept_is_and_brought_to_the_picture_s_size(tmp_path, mode):
    mask = Image.new("L", (16, 8), 0)
    mask.paste(255, (8, 0, 16, 8))
    if mode == "LA":  # a drawing program's layer: paint on a transparent background
        mask = Image.merge("LA", (Image.new("L", (16, 8), 0), mask))
    mask.convert(mode).save(tmp_path / "a.mask.png")
    grey = np.asarray(read_mask(tmp_path / "a.mask.png", (8, 4)))
    assert grey.shape == (4, 8)
    assert (grey[:, :3] < 10).all()
    assert (grey[:, 5:] > 245).all()


def test_a_mask_of_another_shape_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.mask.png")
    with pytest.raises(PicturesError, match=r"a\.mask\.png is 8 x 8, its picture 8 x 4"):
        read_mask(tmp_path / "a.mask.png", (8, 4))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_used_and_this_is_said(tmp_path, suffix):
    frames = [halves(), Image.new("RGB", (8, 4), BLUE)]
    how = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=100, **how)
    read = read_picture(tmp_path / f"a.{suffix}")
    assert read.picture.tobytes() == halves().tobytes()
    assert read.notes == ("has 2 frames: the first is used",)


def test_an_animation_that_breaks_off_after_its_first_frame_is_used(tmp_path):
    halves().save(tmp_path / "a.gif", save_all=True, append_images=[Image.new("RGB", (8, 4), BLUE)])
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[: content.rindex(b"\x2c") + 3])
    assert open_picture(tmp_path / "a.gif").tobytes() == halves().tobytes()


def test_of_a_camera_s_mpo_the_first_picture_is_used(tmp_path):
    upright = halves().resize((64, 32), Image.Resampling.NEAREST)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (32, 64))], exif=EXIF)
    with Image.open(tmp_path / "a.jpg") as file:
        assert file.format == "MPO"
    read = read_picture(tmp_path / "a.jpg")
    assert (read.picture.size, read.notes) == ((64, 32), ())
    assert read.picture.getpixel((4, 16))[0] > 200 > 60 > read.picture.getpixel((4, 16))[2]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_every_format_is_turned_once(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    upright = halves().resize((64, 32), Image.Resampling.NEAREST)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"a.{suffix}", exif=EXIF)
    read = read_picture(tmp_path / f"a.{suffix}")
    assert (read.picture.size, read.turned) == ((64, 32), True)
    assert read.picture.getpixel((4, 16))[0] > 200 > 60 > read.picture.getpixel((4, 16))[2]


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "png"), ("PNG", "JPG"), ("WEBP", "jpeg"), ("JPEG", "jfif")])
def test_a_picture_is_read_by_what_it_is_and_not_by_its_ending(tmp_path, kind, suffix):
    halves().resize((64, 32), Image.Resampling.NEAREST).save(tmp_path / f"a.{suffix}", format=kind)
    assert open_picture(tmp_path / f"a.{suffix}").getpixel((4, 16))[0] > 200


@pytest.mark.parametrize("kind", ["EPS", "PPM", "TGA", "PCX", "ICO"])
def test_formats_that_nobody_asked_for_are_not_tried(tmp_path, kind):
    """Pillow would start Ghostscript for an EPS file, whatever its name ends in."""
    halves().resize((64, 32)).save(tmp_path / "a.png", format=kind)
    with pytest.raises(PicturesError, match=r"a\.png cannot be read"):
        open_picture(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "it is empty"), (b"<!DOCTYPE html>", "a web page or a drawing"), (b"<svg></svg>", "a drawing (SVG)")],
)
def test_what_is_no_picture_at_all_is_called_what_it_is(tmp_path, content, said):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PicturesError, match=r"a\.jpg cannot be read \(") as error:
        open_picture(tmp_path / "a.jpg")
    assert said in str(error.value)


def test_heic_by_another_name_says_what_to_install_too(tmp_path, monkeypatch):
    """Phones and web pages rename it to .jpg."""
    monkeypatch.setattr(reading, "can_read_heic", lambda: False)
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, lambda prefix: False))
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(PicturesError, match=r"phone\.jpg is HEIC, which needs the package pillow-heif"):
        open_picture(tmp_path / "phone.jpg")


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 4), (8, 0)])
def test_a_picture_without_pixels_is_refused(tmp_path, width, height):
    halves().save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PicturesError, match=r"a\.png cannot be read"):
        open_picture(tmp_path / "a.png")


def test_lab_and_the_inverted_inks_of_jpeg_have_their_colours(tmp_path):
    rose = Image.new("RGB", (16, 16), (200, 30, 60))
    lab = ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(rose, ImageCms.createProfile("sRGB"), lab, outputMode="LAB").save(tmp_path / "a.tif")
    rose.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    for name in ("a.tif", "a.jpg"):
        assert open_picture(tmp_path / name).getpixel((8, 8)) == pytest.approx((200, 30, 60), abs=4)
