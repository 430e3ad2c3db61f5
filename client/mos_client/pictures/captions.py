"""Captions of pictures, in which `V` stands for the concept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mos_client.pictures.marks import ANY_MARK, Marks
from mos_common.errors import PicturesError
from mos_common.text_files import NotTextError, read_text_file

TEMPLATES = ("photo of a V", "V", "a picture of V", "a close up of V")
SIDES = {"left": "right", "right": "left"}


def read_captions(file: Path | None, marks: Marks = ANY_MARK) -> tuple[str, ...]:
    """Return the lines of a caption file, or the templates if it is missing or empty.

    Raises:
        PicturesError: it is no text in UTF-8 or UTF-16; the message names it.

    """
    return with_v(read_lines(file) if file else (), marks)


def with_v(lines: Sequence[str], marks: Marks) -> tuple[str, ...]:
    """Return captions with `V` in place of their mark, or the templates if there are none.

    If a caption does not name the concept, "V, " is put in front.
    """
    return tuple(marks.internal(line) for line in lines) or TEMPLATES


def read_lines(file: Path) -> tuple[str, ...]:
    """Return the captions in a file as they are written, one a line.

    Raises:
        PicturesError: it is no text in UTF-8 or UTF-16; the message names it.

    """
    try:
        return caption_lines(read_text_file(file))
    except NotTextError as error:
        raise PicturesError(f"caption {file} {error}") from error
    except OSError as error:
        raise PicturesError(f"caption {file} cannot be read ({error.strerror}): make it readable") from error


def caption_lines(text: str) -> tuple[str, ...]:
    """Return the lines of a text that hold something."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def mirrored_caption(caption: str) -> str:
    """Return the caption of the mirrored picture, with left and right swapped."""
    return re.sub(r"\b(left|right)\b", lambda match: SIDES[match[0]], caption)


def shuffled_caption(caption: str, order: list[int]) -> str:
    """Reorder the comma-separated parts of a caption after the first; `order` permutes them.

    The first part names the concept. Tags are a set: in a fixed order, the order is memorised too.
    """
    first, *rest = (part.strip() for part in caption.split(","))
    return ", ".join([first, *(rest[i] for i in order)])


def movable_parts(caption: str) -> int:
    """Return the number of parts that `shuffled_caption` can reorder."""
    return caption.count(",")
