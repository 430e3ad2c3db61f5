"""The requests of a round: send your concept, and later score how well it survived fusion."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mos_common.errors import TrustError

# A rank-4 concept of SD 1.5 is 3 MB and of SDXL 20 MB; anything larger is not a concept. It stands
# here, and not with the messages, for those who must not import Flower yet.
CONCEPT_BYTES_AT_MOST = 64 << 20
# Flower forgets an upload of which no object has come for 180 s, and sends two at a time: pieces of
# this size arrive in 64 s on a line of 16 kB/s.
PIECE_BYTES = 512 << 10
# The pieces of the largest concept, and the few objects that hold them.
OBJECTS_AT_MOST = CONCEPT_BYTES_AT_MOST // PIECE_BYTES + 8
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
# Model identifiers become names of folders on both sides.
_ROUND_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True)
class TrainRequest:
    """Ask for a participant's concept for a round on a base model.

    Raises:
        TrustError: the name of the round or the digest is malformed.

    """

    round: str
    base: str

    def __post_init__(self) -> None:
        _must_match(_ROUND_ID, round=self.round)
        _must_match(_HEX_DIGEST, base=self.base)


@dataclass(frozen=True)
class EvaluateRequest:
    """Ask how well a participant's concept survived in a candidate, served by mos.v1.

    Raises:
        TrustError: a name or a digest is malformed.

    """

    round: str
    base: str
    candidate: str
    candidate_digest: str

    def __post_init__(self) -> None:
        _must_match(_ROUND_ID, round=self.round, candidate=self.candidate)
        _must_match(_HEX_DIGEST, base=self.base, candidate_digest=self.candidate_digest)


def _must_match(pattern: re.Pattern[str], **texts: str) -> None:
    for name, text in texts.items():
        if not pattern.fullmatch(text):
            raise TrustError(f"the server's request has {name} {text[:80]!r}: expected {pattern.pattern}")
