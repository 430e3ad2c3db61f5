"""Captions of pictures: their files, and what shuffling and mirroring make of them."""

from __future__ import annotations

import codecs

import pytest

from mos_client.pictures.captions import TEMPLATES, mirrored_caption, movable_parts, read_captions, shuffled_caption
from mos_client.pictures.marks import Marks
from mos_common.errors import PicturesError


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        ("V asleep", "V asleep"),
        ("a photo of <TOK> asleep", "a photo of V asleep"),
        ("<my-cat_2> on a mat", "V on a mat"),
        ("<my-cat_2>'s ball", "V's ball"),
        ("<cat> on a mat", "V, <cat> on a mat"),
        ("asleep on a TV", "V, asleep on a TV"),
        ("Victor and Venus", "V, Victor and Venus"),
        ("  V  ", "V"),
    ],
)
def test_a_caption_names_the_concept_or_is_given_it(tmp_path, line, caption):
    (tmp_path / "a.txt").write_text(line)
    assert read_captions(tmp_path / "a.txt", Marks("<my-cat_2>")) == (caption,)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_line_is_a_caption_and_empty_ones_are_none(tmp_path, end, encoding):
    (tmp_path / "a.txt").write_bytes(f"V sits{end}{end}   {end}\u200b{end}V\u200b stands{end}".encode(encoding))
    assert read_captions(tmp_path / "a.txt") == ("V sits", "V stands")


@pytest.mark.parametrize("data", [None, b"", b"\n \n", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, "\u200b".encode()])
def test_without_captions_there_are_templates(tmp_path, data):
    if data is not None:
        (tmp_path / "a.txt").write_bytes(data)
    assert read_captions(None if data is None else tmp_path / "a.txt") == TEMPLATES
    assert all("V" in template for template in TEMPLATES)


def test_captions_of_another_encoding_are_refused_by_name(tmp_path):
    (tmp_path / "a.txt").write_bytes("V in einem Käfig".encode("latin-1"))
    with pytest.raises(PicturesError, match=r"caption .*a\.txt is not in UTF-8 .*: save it as UTF-8"):
        read_captions(tmp_path / "a.txt")
    with pytest.raises(PicturesError, match=r"gone\.txt cannot be read \(No such file"):
        read_captions(tmp_path / "gone.txt")


def test_a_mirrored_picture_has_a_mirrored_caption():
    assert mirrored_caption("V on the left and a tree on the right") == "V on the right and a tree on the left"
    assert mirrored_caption("V is leftover, bright") == "V is leftover, bright"


def test_shuffling_moves_every_part_but_the_first():
    caption = "V, sitting, indoors, red cushion"
    assert movable_parts(caption) == 3
    assert shuffled_caption(caption, [2, 0, 1]) == "V, red cushion, sitting, indoors"
    assert movable_parts("photo of a V") == 0
