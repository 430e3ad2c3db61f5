"""Texts that travel: what is invisible or turns a text is refused, and shown by its code point."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from pydantic import TypeAdapter, ValidationError

from mos_common.errors import RequestError
from mos_common.texts import Text, checked_text, is_file_name, is_unseen, problem_with, visible

UNSEEN = {
    "\u202e": "U+202E (RIGHT-TO-LEFT OVERRIDE)",
    "\u2066": "U+2066 (LEFT-TO-RIGHT ISOLATE)",
    "\u200b": "U+200B (ZERO WIDTH SPACE)",
    "\u200d": "U+200D (ZERO WIDTH JOINER)",
    "\u00ad": "U+00AD (SOFT HYPHEN)",
    "\ufeff": "U+FEFF (ZERO WIDTH NO-BREAK SPACE)",
    "\u2028": "U+2028 (LINE SEPARATOR)",
    "\u2029": "U+2029 (PARAGRAPH SEPARATOR)",
    "\n": "U+000A (Cc)",
    "\x1b": "U+001B (Cc)",
    "\ue000": "U+E000 (Co)",
    "\ud800": "U+D800 (Cs)",
    "\U000e0041": "U+E0041 (TAG LATIN CAPITAL LETTER A)",
    "\ufe0f": "U+FE0F (VARIATION SELECTOR-16)",
    "\u3164": "U+3164 (HANGUL FILLER)",
    "\u034f": "U+034F (COMBINING GRAPHEME JOINER)",
    "\u2800": "U+2800 (BRAILLE PATTERN BLANK)",
}


@pytest.mark.parametrize(("character", "named"), UNSEEN.items(), ids=[named.split()[0] for named in UNSEEN.values()])
def test_an_unseen_character_is_named_by_its_code_point_and_place(character, named):
    assert problem_with(f"a c{character}at").startswith(f"character 4 is {named}, which is invisible")
    with pytest.raises(RequestError, match=rf"--class .*{named[:6].replace('+', '[+]')}"):
        checked_text(f"a c{character}at", "--class")
    with pytest.raises(ValidationError):
        TypeAdapter(Text).validate_python(f"a c{character}at")
    assert character not in visible(f"a c{character}at")


@pytest.mark.parametrize(
    "text", ["", "cat", "Zoë Ångström", "猫", "حرة", "חתול", "café 2×3 – “ok” €", "😀", "it's\u00a0mine"]
)
def test_texts_of_all_scripts_travel_and_are_shown_as_they_are(text):
    assert problem_with(text) is None
    assert checked_text(text, "--author") == visible(text) == text
    assert TypeAdapter(Text).validate_python(text) == text


def test_every_character_that_unicode_ignores_by_default_is_unseen():
    """The ranges of Default_Ignorable_Code_Point, as DerivedCoreProperties.txt lists them."""
    ranges = "AD 34F 61C 115F-1160 17B4-17B5 180B-180F 200B-200F 202A-202E 2060-206F 3164 FE00-FE0F FEFF FFA0 FFF0-FFF8"
    ranges += " 1BCA0-1BCA3 1D173-1D17A E0000-E0FFF"
    for part in ranges.split():
        first, _, last = part.partition("-")
        for code in range(int(first, 16), int(last or first, 16) + 1):
            assert is_unseen(chr(code)), hex(code)


def test_every_character_of_the_named_categories_is_unseen():
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            assert is_unseen(chr(code)), hex(code)


def test_letters_in_several_parts_are_one_text_with_the_letter_in_one_part():
    assert checked_text("Jose\u0301", "--author") == "Jos\u00e9"
    assert "NFC" in problem_with("Jose\u0301")


def test_what_is_shown_of_an_old_text_is_its_code_points():
    assert visible("a\u202eb\U000e0041\x1b[2J") == "a\\u202eb\\U000e0041\\u001b[2J"


@pytest.mark.parametrize("name", ["adapter.safetensors", "manifest.json", "round-001", "a+b_c.0"])
def test_names_of_files_are_plain(name):
    assert is_file_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "a\\b", "C:x", "a b", "a\n", "a\u202eb", "é", "-rf", "a" * 256],
)
def test_other_names_are_not_of_files(name):
    assert not is_file_name(name)
