"""Captions of pictures, in which `V` stands for the concept."""

from __future__ import annotations

import re
from pathlib import Path

TEMPLATES = ("photo of a V", "V", "a picture of V", "a close up of V")
NAMED = re.compile(r"<TOK>|<[a-z0-9][a-z0-9_-]*>|\bV\b")
SIDES = {"left": "right", "right": "left"}


def read_captions(file: Path | None) -> tuple[str, ...]:
    """Return the lines of a caption file, or the templates if it is missing or empty.

    A caption may write the concept as V, <TOK> or any <name>; if it does not, "V, " is prepended.
    """
    if file is None:
        return TEMPLATES
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return tuple(NAMED.sub("V", line) if NAMED.search(line) else f"V, {line}" for line in lines) or TEMPLATES


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
