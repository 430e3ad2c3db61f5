"""Everything that leaves a participant's machine: `join` prints it, the page has it as a table.

`tests/end_to_end/test_what_leaves.py` reads every byte that a client sends in a round and finds
each of them in one of these rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mos_client.federation.enrolment import Enrolment
    from mos_client.federation.session import Session


@dataclass(frozen=True)
class Leaving:
    """One kind of thing that leaves, and when."""

    what: str
    when: str


CONCEPT = Leaving(
    "the concept file: weights with rank and alpha of each layer, the concept's name, class word and trigger, "
    "what you give as author and licence, the base's fingerprint, the release that made it",
    "when the server asks for it, after you were shown what is in it",
)
UPLOAD_NUMBERS = Leaving(
    "the size of the concept file in bytes, the first digits of its digest, the seconds that its tuning took, and your "
    "yes if you agree that its own changes are published",
    "with the concept file",
)
SCORES = Leaving("four numbers: how well your concept survived", "when a model is scored")
KEY = Leaving("your public key, the time, and your signature", "with every call")
TOKEN = Leaving("the kit's one-time token", "once, to enrol")
DOWNLOADS = Leaving(
    "the names of the models and files that you fetch, and from which byte on", "when the client looks for a model"
)
PRESENCE = Leaving(
    "your network address, and that you are online", "while the client runs: a sign of life every half minute"
)
BOOKKEEPING = Leaving(
    "Flower's bookkeeping: numbers of node, run and message, their kind, times and digests, the bytes that the "
    "server allowed, the seconds that an answer took",
    "around every question of the server",
)
VERSIONS = Leaving("the releases of this client, Flower, gRPC and the HTTP library", "with every call")
ERRORS = Leaving(
    "the kind of an error, such as PicturesError, never its text", "instead of an answer that cannot be given"
)

LEAVES = (CONCEPT, UPLOAD_NUMBERS, SCORES, KEY, TOKEN, DOWNLOADS, PRESENCE, BOOKKEEPING, VERSIONS, ERRORS)


AGREED = (
    "this federation publishes each concept's own spatial changes beside the fused model, and yours too unless you "
    "stop now (Ctrl-C) and join with --fused-only: everybody in it can fetch them and draw your concept better than "
    "with the fused model. After a withdrawal they are served no more, in older models either; copies fetched before "
    "cannot be called back"
)
REFUSED = (
    "--fused-only: your concept's own changes are not published, and the server is told no yes with the concept file"
)


def say_what_leaves(*, publishes_own: bool = False, agreed: bool = False) -> Iterator[str]:
    """Yield the lines that `join` prints before anything has left.

    `publishes_own` is what the kit says of the federation, `agreed` what the participant answers.
    """
    yield "what leaves this machine, and nothing else does:"
    for each in LEAVES:
        yield f"- {each.what} ({each.when})"
    if publishes_own:
        yield AGREED if agreed else REFUSED


def withdraw_concept(session: Session, enrolment: Enrolment) -> Iterator[str]:
    """Have the server erase the concept, and yield lines that say what came of it.

    Raises:
        RequestError: the server does not have it.
        MosError: as `news.withdraw` raises.

    """
    from mos_client.federation.consent import take_back
    from mos_client.federation.news import withdraw

    take_back(session.state)  # first: a `join --ask` that runs must not send it again
    models = withdraw(enrolment, session.request.concept)
    yield f"{session.token(enrolment.participant)}: erased at the server, and left out of future rounds"
    if models:
        yield f"it is still in {', '.join(models)}, which everybody may have: a published model is never changed"
