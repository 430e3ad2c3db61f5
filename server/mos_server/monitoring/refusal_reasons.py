"""A few words for each kind of reason for which an upload is not fused.

The journal has a sentence for each refusal, with names and numbers in it: as labels of a metric
they would be without number, and some of their words are strangers'.
"""

from __future__ import annotations

import re

WITHDRAWN = "withdrawn"
OTHER = "unreadable"
# The first pattern that is found decides. What fits none is a file that its reader gave up on.
_KINDS = (
    (r"^withdrawn$", WITHDRAWN),
    (r"^replaced by a later one$", "replaced"),
    (r"was withdrawn, and a withdrawn concept stays out", "withdrawn before"),
    (r"already has a concept|has the same contents", "duplicate"),
    (r"^it is left out: ", "left out of fusion"),
    (r"^it cannot be fused: ", "cannot be fused"),
    (r"the round's process died", "process died"),
    (r"is not admitted: ", "out of bounds"),
    (r"does not fit |was trained on|was tuned on|has no tokens for", "another base"),
    (r"^has more than|^has \d+ objects|too large|a concept file has more than|a concept file has at most", "size"),
    (r"came where a concept was asked for|cannot be decoded|cannot be fetched|belong to another", "unusable answer"),
)
REASONS = (*dict.fromkeys(kind for _, kind in _KINDS), OTHER)


def reason_kind(reason: str) -> str:
    """Return which of `REASONS` a sentence of the journal is."""
    return next((kind for pattern, kind in _KINDS if re.search(pattern, reason)), OTHER)
