"""Text files: encodings that are read, and those that are refused by name."""

from __future__ import annotations

import codecs

import pytest

from mos_common.text_files import NotTextError, clean_text, decode_text, read_text_file

TEXT = "V in einem Käfig, 猫"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.replace("ä", "a\u0308").encode(),
    ],
)
def test_utf8_and_utf16_are_read_with_their_byte_order_marks(data):
    assert decode_text(data) == TEXT


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("V im Käfig".encode("cp1252"), r"not in UTF-8 \(line 1, byte 0xE4\), perhaps in an encoding of Windows: save"),
        (b"V sits\n" + "V im Käfig".encode("latin-1"), r"line 2"),
        ("猫".encode("shift-jis"), "not in UTF-8"),
        ("猫と犬".encode("gbk"), "not in UTF-8"),
        (TEXT.encode("utf-16-le"), "UTF-8"),
        ("V asleep".encode("utf-16-be"), "holds zero bytes, as UTF-16 without its byte order mark"),
        (codecs.BOM_UTF16_LE + b"V\0\0\xd8", "starts as UTF-16 and is damaged"),
        (codecs.BOM_UTF16_LE + b"V\0a", "starts as UTF-16 and is damaged"),
        (codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), "is in UTF-32"),
        (codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"), "is in UTF-32"),
        (b"V\0asleep", "zero bytes"),
        (b"V asleep\x1a", r"U\+001A"),
        (rb"{\rtf1\ansi V asleep}", "RTF"),
        (b"\x89PNG\r\n\x1a\n", "not in UTF-8"),
        (b"PK\x03\x04 a document", "control character"),
    ],
)
def test_anything_else_is_named_with_what_to_do(data, said):
    with pytest.raises(NotTextError, match=said) as error:
        decode_text(data)
    assert "save it as" in str(error.value)


def test_invisible_characters_go_and_those_that_join_letters_stay():
    assert clean_text("\ufeffV\u200b as\u00adleep\u200e \u2066here\u2069") == "V asleep here"
    assert clean_text("می\u200cخواهم 👩\u200d🎨") == "می\u200cخواهم 👩\u200d🎨"


def test_line_ends_are_left_to_the_reader():
    assert decode_text(b"a\r\nb\rc\n") == "a\r\nb\rc\n"


def test_a_file_too_large_for_a_text_is_refused_without_reading_it_all(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * ((1 << 20) + 1))
    with pytest.raises(NotTextError, match="larger than 1,024 KiB"):
        read_text_file(tmp_path / "a.txt", most=1 << 20)


def test_an_empty_file_is_an_empty_text():
    assert decode_text(b"") == decode_text(codecs.BOM_UTF8) == decode_text(codecs.BOM_UTF16_LE) == ""
