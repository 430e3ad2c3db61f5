"""Texts that travel: the characters that they may have, and how a stranger's text is shown.

Authors, licences, class words and names of files are read by people, in terminals and in other
tools. A character that is not seen, or that turns the text around it, makes a text that is not what
it seems to be: `PRINTABLE` is the one definition of what is refused where texts are written and
admitted. What was published before that rule is still read, and shown with `visible`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

from mos_common.errors import RequestError

# Controls, format characters (zero width, directions), surrogates, private use, unassigned, and the
# separators of lines and paragraphs.
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Unicode draws these as nothing and yet counts them as letters, marks or symbols: fillers, joiners
# and selectors of variants (its property Default_Ignorable_Code_Point), and Braille without dots.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}")


def is_unseen(character: str) -> bool:
    """Return whether a character is invisible, or changes the direction or the line of a text."""
    return unicodedata.category(character) in _UNSEEN_CATEGORIES or bool(_UNSEEN.match(character))


def problem_with(text: str) -> str | None:
    """Return why a text may not travel, or None: the first character at fault, by code point."""
    for position, character in enumerate(text, start=1):
        if is_unseen(character):
            name = unicodedata.name(character, unicodedata.category(character))
            return (
                f"character {position} is U+{ord(character):04X} ({name}), which is invisible or changes how the "
                "text around it is shown: leave it out"
            )
    if not unicodedata.is_normalized("NFC", text):
        return "it has letters written in several parts (not Unicode's form NFC): write them as single characters"
    return None


def checked_text(text: str, what: str) -> str:
    """Return a text that a person typed, in form NFC, if it may travel.

    Raises:
        RequestError: it has a character that is not seen; `what` names the text.

    """
    text = unicodedata.normalize("NFC", text)
    if problem := problem_with(text):
        raise RequestError(f"{what} {visible(text)!r}: {problem}")
    return text


def visible(text: str) -> str:
    r"""Return a text with every unseen character as its code point, such as `\u202e`."""
    return "".join(map(_shown, text))


def is_file_name(name: str) -> bool:
    """Return whether a name that a stranger gives is one of a file: plain letters, and no path."""
    return _FILE_NAME.fullmatch(name) is not None


def _shown(character: str) -> str:
    if not is_unseen(character):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _only_printable(text: str) -> str:
    if problem := problem_with(text):
        raise ValueError(problem)
    return text


PRINTABLE = AfterValidator(_only_printable)
Text = Annotated[str, Field(max_length=500), PRINTABLE]
ShownText = Annotated[str, AfterValidator(visible)]
