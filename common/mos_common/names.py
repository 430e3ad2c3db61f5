"""The grammar of concept names."""

from __future__ import annotations

import re

from mos_common.errors import RequestError

CONCEPT_NAME = re.compile(r"<[a-z0-9][a-z0-9_-]*>")


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
