"""Folders of pictures: what is read, how it is turned upright, what is held back, what a caption means."""

from __future__ import annotations

import io
import os
import shutil
import warnings
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mos_client.dataset import (
    FEWEST,
    TEMPLATES,
    captions_of,
    find_pictures,
    load_examples,
    load_pictures,
    open_picture,
    pictures_digest,
    split_pictures,
)
from mos_common.errors import PicturesError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)

EXIF = Image.Exif()
EXIF[0x0112] = 6


def halves(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 8 x 4 pixels."""
    picture = Image.new("RGB", (8, 4), RED)
    picture.paste(BLUE, (4, 0, 8, 4))
    return picture.convert(mode)


# ---- one picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_the_camera_was_held(tmp_path, orientation):
    """EXIF says how the stored rows lie; the other road turns them by hand."""
    upright = halves()
    back = {  # what a camera stores so that the viewer, told `orientation`, sees `upright`
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


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "png"), ("P", "gif"), ("LA", "png"), ("CMYK", "jpg"), ("CMYK", "tif"), ("I;16", "png")])  # fmt: skip
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


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_broken_picture_is_named(make_pictures, content):
    folder = make_pictures(5)
    (folder / "03.png").write_bytes(content)
    with pytest.raises(PicturesError, match=r"03\.png cannot be read.*repair it or take it out"):
        find_pictures(folder)


def test_a_picture_cut_off_in_the_middle_is_named(make_pictures):
    folder = make_pictures(5)
    data = (folder / "01.png").read_bytes()
    (folder / "01.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(PicturesError, match=r"01\.png"):
        find_pictures(folder)


def test_a_picture_beyond_the_cap_is_refused_unread(make_pictures, monkeypatch):
    folder = make_pictures(4)
    monkeypatch.setattr("mos_client.dataset.MAX_PIXELS", 64 * 64 - 1)
    with pytest.raises(PicturesError, match=r"00\.png has 64 x 64 pixels, more than 4,095"):
        find_pictures(folder)


def test_a_decompression_bomb_is_a_pictures_error(make_pictures, monkeypatch):
    folder = make_pictures(4)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 64 * 64 // 3)
    with pytest.raises(PicturesError, match=r"00\.png"):
        find_pictures(folder)


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


# ---- a folder


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PicturesError, match=r"no folder of pictures at .*nowhere"):
        find_pictures(tmp_path / "nowhere")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(PicturesError, match="no folder"):
        find_pictures(tmp_path / "file.png")


@pytest.mark.parametrize("count", range(FEWEST))
def test_fewer_than_three_pictures_are_refused(make_pictures, count):
    with pytest.raises(PicturesError, match=f"{count} pictures in .*at least 3"):
        find_pictures(make_pictures(count))


def test_pictures_are_found_by_name_and_nothing_else_is_looked_at(make_pictures):
    folder = make_pictures(4)
    halves().save(folder / "Z.JPG", format="JPEG")
    halves().save(folder / "00.mask.png")
    (folder / "00.txt").write_text("a caption")
    (folder / "notes.md").write_text("x")
    (folder / "deeper").mkdir()
    halves().save(folder / "deeper" / "deep.png")
    assert [p.name for p in find_pictures(folder)] == ["00.png", "01.png", "02.png", "03.png", "Z.JPG"]


def test_a_folder_that_is_called_like_a_picture_is_named(make_pictures):
    folder = make_pictures(4)
    (folder / "04.png").mkdir()
    with pytest.raises(PicturesError, match=r"04\.png"):
        find_pictures(folder)


@pytest.mark.parametrize(("count", "held"), [(3, 1), (4, 2), (5, 2), (12, 2)])
def test_the_last_two_are_held_back(make_pictures, count, held):
    tuned_on, held_back = split_pictures(make_pictures(count))
    names = [f"{i:02}.png" for i in range(count)]
    assert [p.name for p in tuned_on] == names[:-held]
    assert [p.name for p in held_back] == names[-held:]


def test_pictures_become_squares_of_the_base_s_size_cut_from_the_middle(tmp_path):
    """8 x 4 pixels: the middle 4 x 4 are red on the left, blue on the right."""
    halves().save(tmp_path / "a.png")
    (square,) = load_pictures([tmp_path / "a.png"], 4)
    assert square.shape == (3, 4, 4)
    assert square[:, :, 0].T.tolist() == [[1.0, -1.0, -1.0]] * 4
    assert square[:, :, -1].T.tolist() == [[-1.0, -1.0, 1.0]] * 4


def test_examples_are_the_latents_of_the_base_and_the_captions(sixteen, make_pictures):
    folder = make_pictures(3)
    (folder / "01.txt").write_text("V asleep\n")
    examples = load_examples(sixteen, find_pictures(folder))
    expected = sixteen.encode_pictures(load_pictures([e.path for e in examples], 16))
    torch.testing.assert_close(torch.stack([e.latent for e in examples]), expected)
    assert [e.captions for e in examples] == [TEMPLATES, ("V asleep",), TEMPLATES]


# ---- captions


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        ("V asleep", "V asleep"),
        ("a photo of <TOK> asleep", "a photo of V asleep"),
        ("<cat> on a mat", "V on a mat"),
        ("<my-cat_2>'s ball", "V's ball"),
        ("asleep on a TV", "V, asleep on a TV"),
        ("Victor and Venus", "V, Victor and Venus"),
        ("  V  ", "V"),
    ],
)
def test_a_caption_names_the_concept_or_is_given_it(tmp_path, line, caption):
    (tmp_path / "a.txt").write_text(line)
    assert captions_of(tmp_path / "a.png") == (caption,)


def test_every_line_is_a_caption_and_empty_ones_are_none(tmp_path):
    (tmp_path / "a.txt").write_text("V sits\n\n   \nV stands\r\n")
    assert captions_of(tmp_path / "a.png") == ("V sits", "V stands")


@pytest.mark.parametrize("text", [None, "", "\n \n"])
def test_without_captions_there_are_templates(tmp_path, text):
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    assert captions_of(tmp_path / "a.png") == TEMPLATES
    assert all("V" in template for template in TEMPLATES)


def test_captions_of_another_encoding_are_no_traceback(tmp_path):
    (tmp_path / "a.txt").write_bytes("V in einem Käfig".encode("latin-1"))
    assert captions_of(tmp_path / "a.png")[0].startswith("V in einem K")


# ---- digest


def test_the_digest_is_of_names_bytes_and_captions(make_pictures, tmp_path):
    folder = make_pictures(4)
    digest = pictures_digest(find_pictures(folder))
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    os.utime(moved / "00.png", (0, 0))
    assert pictures_digest(find_pictures(moved)) == digest
    found = {digest}
    (moved / "00.txt").write_text("V sits")
    found.add(pictures_digest(find_pictures(moved)))
    halves().save(moved / "01.png")
    found.add(pictures_digest(find_pictures(moved)))
    (moved / "02.png").rename(moved / "02b.png")
    found.add(pictures_digest(find_pictures(moved)))
    assert len(found) == 4
