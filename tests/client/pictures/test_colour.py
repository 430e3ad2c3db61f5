"""Colours: whatever profile a file embeds, pictures arrive in sRGB."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from mos_client.pictures.reading import open_picture, read_picture
from reference.icc import ADOBE_RGB, P3, SRGB, cmyk_profile, grey_profile, in_srgb, rgb_profile

COLOURS = [(200, 100, 50), (20, 180, 90), (90, 60, 200), (128, 128, 128), (255, 255, 255), (0, 0, 0)]
P3_PROFILE = rgb_profile("Display P3", P3)


def strip(colours: list[tuple[int, ...]], mode: str = "RGB") -> Image.Image:
    picture = Image.new(mode, (len(colours), 1))
    for x, colour in enumerate(colours):
        picture.putpixel((x, 0), colour)
    return picture


def pixels(picture: Image.Image) -> list[tuple[int, ...]]:
    return [picture.getpixel((x, 0)) for x in range(picture.width)]


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize(("name", "matrix", "gamma"), [("Display P3", P3, None), ("Adobe RGB", ADOBE_RGB, 2.19921875)])
def test_colours_of_a_profile_are_those_that_its_matrix_says(tmp_path, name, matrix, gamma, suffix):
    how = {"lossless": True} if suffix == "webp" else {}
    strip(COLOURS).save(tmp_path / f"a.{suffix}", icc_profile=rgb_profile(name, matrix, gamma), **how)
    read = read_picture(tmp_path / f"a.{suffix}")
    for colour, got in zip(COLOURS, pixels(read.picture), strict=True):
        assert got == pytest.approx(in_srgb(colour, matrix, gamma), abs=2)
    assert read.notes == (f"its colours are converted from {name!r} to sRGB",)


def test_the_red_of_display_p3_is_what_littlecms_makes_of_it_in_floating_point(tmp_path):
    strip([(255, 0, 0), (234, 51, 35)]).save(tmp_path / "a.png", icc_profile=P3_PROFILE)
    opened = ImageCms.ImageCmsProfile(io.BytesIO(P3_PROFILE))
    lab = ImageCms.buildTransform(opened, ImageCms.createProfile("LAB"), "RGB", "LAB")
    back = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    through_lab = ImageCms.applyTransform(ImageCms.applyTransform(strip([(255, 0, 0), (234, 51, 35)]), lab), back)
    for ours, theirs in zip(pixels(open_picture(tmp_path / "a.png")), pixels(through_lab), strict=True):
        assert ours == pytest.approx(theirs, abs=8), "Lab has 8 bits here"
    assert pixels(open_picture(tmp_path / "a.png"))[0] == (255, 0, 0), "sRGB has no redder red"


def test_srgb_by_any_name_leaves_every_pixel_as_it_is(tmp_path):
    colours = [tuple(c) for c in np.random.default_rng(0).integers(0, 256, (200, 3)).tolist()]
    for i, icc in enumerate(
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), rgb_profile("c2", SRGB))
    ):
        strip(colours).save(tmp_path / f"{i}.png", icc_profile=icc)
        read = read_picture(tmp_path / f"{i}.png")
        assert pixels(read.picture) == colours
        assert read.notes == ()


def test_a_grey_profile_is_honoured(tmp_path):
    strip([64, 128, 255], "L").save(tmp_path / "a.png", icc_profile=grey_profile("linear grey", 1.0))
    greys = [pixel[0] for pixel in pixels(open_picture(tmp_path / "a.png"))]
    assert greys == pytest.approx([137, 188, 255], abs=2), "the sRGB curve of 64/255 and 128/255"


def test_a_grey_picture_with_the_profile_of_its_colours_follows_it(tmp_path):
    strip([10, 100, 200], "L").save(tmp_path / "a.tif", icc_profile=rgb_profile("light", SRGB, 1.0))
    greys = [pixel[0] for pixel in pixels(open_picture(tmp_path / "a.tif"))]
    assert greys == pytest.approx([in_srgb((x,) * 3, SRGB, 1.0)[0] for x in (10, 100, 200)], abs=2)


@pytest.mark.parametrize("suffix", ["tif", "jpg"])
def test_inks_are_what_their_profile_says(tmp_path, suffix):
    """The profile makes every coloured ink a grey of L* = 50, which is 119 in sRGB."""
    inks = Image.new("CMYK", (32, 16), (0, 255, 0, 0))
    inks.paste((0, 0, 0, 0), (16, 0, 32, 16))
    how = {"quality": 100} if suffix == "jpg" else {}
    inks.save(tmp_path / f"a.{suffix}", icc_profile=cmyk_profile("press"), **how)
    opened = open_picture(tmp_path / f"a.{suffix}")
    assert opened.getpixel((4, 8)) == pytest.approx((119, 119, 119), abs=3)
    assert opened.getpixel((28, 8)) == pytest.approx((255, 255, 255), abs=3)
    inks.save(tmp_path / f"b.{suffix}", **how)
    assert open_picture(tmp_path / f"b.{suffix}").getpixel((4, 8)) == pytest.approx((255, 0, 255), abs=3)


def test_transparency_stays_and_the_colours_beneath_it_are_converted(tmp_path):
    cut_out = Image.new("RGBA", (8, 4), (200, 100, 50, 255))
    cut_out.paste((200, 100, 50, 0), (4, 0, 8, 4))
    cut_out.save(tmp_path / "a.png", icc_profile=P3_PROFILE)
    read = read_picture(tmp_path / "a.png")
    assert read.picture.getpixel((1, 1)) == pytest.approx(in_srgb((200, 100, 50), P3), abs=2)
    assert read.picture.getpixel((6, 1)) == (255, 255, 255)
    assert [read.mask.getpixel((x, 1)) for x in (1, 6)] == [255, 0]


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_grey_with_alpha_and_palettes_follow_their_profile_too(tmp_path, mode):
    icc = grey_profile("linear grey", 1.0) if mode == "LA" else P3_PROFILE
    picture = (
        Image.new("LA", (8, 4), (64, 255)) if mode == "LA" else Image.new("RGB", (8, 4), (200, 100, 50)).convert("P")
    )
    expected = (137, 137, 137) if mode == "LA" else in_srgb(picture.convert("RGB").getpixel((0, 0)), P3)
    picture.save(tmp_path / "a.png", icc_profile=icc)
    assert open_picture(tmp_path / "a.png").getpixel((1, 1)) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(
    ("icc", "said"),
    [
        (b"no profile at all", "broken and left out"),
        (P3_PROFILE[:200], "broken and left out"),
        (b"\0" * 300, "broken and left out"),
        (cmyk_profile("press"), "is not for RGB: it is left out"),
        (grey_profile("grey", 2.2), "is not for RGB: it is left out"),
    ],
)
def test_a_profile_that_cannot_be_used_is_left_out_and_said(tmp_path, icc, said):
    strip(COLOURS).save(tmp_path / "a.png", icc_profile=icc)
    read = read_picture(tmp_path / "a.png")
    assert pixels(read.picture) == COLOURS
    (note,) = read.notes
    assert said in note


def test_a_camera_s_adobe_rgb_without_a_profile_is_said(tmp_path):
    for index, said in (("R03", True), ("R98", False)):
        exif = Image.Exif()
        exif[0x8769] = {0xA005: {1: index}}
        strip(COLOURS).save(tmp_path / "a.jpg", exif=exif)
        assert any("says Adobe RGB" in note for note in read_picture(tmp_path / "a.jpg").notes) == said


@pytest.mark.parametrize(("gamma", "said"), [(45455, False), (46000, False), (100000, True)])
def test_a_gamma_that_is_not_the_usual_one_is_said(tmp_path, gamma, said):
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", gamma))
    strip(COLOURS).save(tmp_path / "a.png", pnginfo=chunks)
    read = read_picture(tmp_path / "a.png")
    assert pixels(read.picture) == COLOURS
    assert any("gamma 1, which is not used" in note for note in read.notes) == said
