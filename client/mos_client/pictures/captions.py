"""What is said about a picture: captions in which `V` stands for the concept."""

from __future__ import annotations

import re
from pathlib import Path

TEMPLATES = ("photo of a V", "V", "a picture of V", "a close up of V")
NAMED = re.compile(r"<TOK>|<[a-z0-9][a-z0-9_-]*>|\bV\b")
SIDES = {"left": "right", "right": "left"}


def read_captions(file: Path | None) -> tuple[str, ...]:
    """The lines of a caption file; without one, or when it is empty, the templates.

    A caption may write the concept as V, <TOK> or any <name>; one that does not name it is given it in front.
    """
    if file is None:
        return TEMPLATES
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return tuple(NAMED.sub("V", line) if NAMED.search(line) else f"V, {line}" for line in lines) or TEMPLATES


def mirrored_caption(caption: str) -> str:
    """The caption of the mirrored picture: left is right."""
    return re.sub(r"\b(left|right)\b", lambda found: SIDES[found[0]], caption)


def shuffled_caption(caption: str, order: list[int]) -> str:
    """A caption of comma-separated parts with its parts after the first in another order; `order` permutes them.

    The first part names the concept. Tag-like captions are a set; a fixed order is a thing to be learnt by heart.
    """
    first, *rest = (part.strip() for part in caption.split(","))
    return ", ".join([first, *(rest[i] for i in order)])


def movable_parts(caption: str) -> int:
    """How many parts `shuffled_caption` may put into another order."""
    return caption.count(",")
