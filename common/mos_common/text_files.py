"""Read a text file that a person made: a caption, a kit, a table of captions.

UTF-8 is read with and without its byte order mark, UTF-16 by its byte order mark. Whatever else it
is has a name, and is refused by it: a guessed encoding puts wrong letters where nobody looks.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

MOST_BYTES = 4 << 20
NOT_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
# Invisible and without effect on how a line reads: left by web pages and chat programs. The joiners
# U+200C and U+200D stay, for Persian, Hindi and emoji.
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


class NotTextError(ValueError):
    """Bytes that are no text we read; the message completes the sentence "the file ..."."""


def read_text_file(path: Path, *, most: int = MOST_BYTES) -> str:
    """Return a file's text in Unicode NFC, without byte order mark and invisible characters.

    Raises:
        NotTextError: it is too large, is no text, or has another encoding.
        OSError: it cannot be read.

    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise NotTextError(f"is larger than {most >> 10:,} KiB: it is something else")
    return decode_text(data)


def decode_text(data: bytes) -> str:
    """Return the text that bytes stand for, as `read_text_file` does.

    Raises:
        NotTextError: they are no text, or have another encoding.

    """
    return clean_text(_decoded(data))


def clean_text(text: str) -> str:
    """Return a text in Unicode NFC, without invisible characters.

    Raises:
        NotTextError: it holds control characters, or is formatted text.

    """
    text = unicodedata.normalize("NFC", text)
    if found := NOT_TEXT.search(text):
        if found[0] == "\0":
            raise NotTextError("holds zero bytes, as UTF-16 without its byte order mark does: save it as UTF-8")
        raise NotTextError(f"holds the control character U+{ord(found[0]):04X}: save it as plain text in UTF-8")
    if text.lstrip().startswith("{\\rtf"):
        raise NotTextError("is formatted text (RTF): save it as plain text in UTF-8")
    return INVISIBLE.sub("", text)


def _decoded(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise NotTextError("is in UTF-32: save it as UTF-8")
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.encoding != "utf-8":
            raise NotTextError("starts as UTF-16 and is damaged: save it as UTF-8") from error
        line = data.count(b"\n", 0, error.start) + 1
        raise NotTextError(
            f"is not in UTF-8 (line {line}, byte 0x{data[error.start]:02X}), perhaps in an encoding of Windows: "
            "save it as UTF-8"
        ) from error
