"""The grammar of concept names."""

from __future__ import annotations

import re

from mos_common.errors import RequestError

CONCEPT_NAME = re.compile(r"<[a-z0-9][a-z0-9_-]*>")
# In prompts and fused models: with the participant, or without one if fused by hand.
TOKEN = re.compile(r"<(?:[a-z0-9][a-z0-9_-]*/)?[a-z0-9][a-z0-9_-]*>")
BRACKETS = re.compile(r"[<>‹›«»〈〉《》＜＞]|&[lg]t;")


def check_concept_name(name: str) -> str:
    """Return the name if it follows the grammar.

    Raises:
        RequestError: it does not.

    """
    if not CONCEPT_NAME.fullmatch(name):
        raise RequestError(
            f"concept name {name!r} breaks the grammar <[a-z0-9][a-z0-9_-]*>: "
            'write it like "<cat>" or "<my-dog2>", in lower case and in quotes'
        )
    return name


def is_ordinary_text(text: str) -> bool:
    """Return whether a class word or trigger can stand in prompts without naming a concept."""
    return not BRACKETS.search(text)
