"""The participants' machines on Flower: questions become messages, replies become values."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from flwr.app import Message, MessageType

from mos_common import messages
from mos_common.errors import ConceptError
from mos_common.node_key import key_digest
from mos_common.round_requests import CONCEPT_BYTES_AT_MOST, TrainRequest
from mos_server.network.fleet import group_of_question
from mos_server.round.exchange import Answer, Lost, NoScores, Question, Unusable, WithOwn, one_line
from mos_server.round.replies import Fetched, Replies, decode

if TYPE_CHECKING:
    from flwr.app import Error
    from flwr.superlink.grid import HttpGrid

log = logging.getLogger(__name__)
Reading = Callable[[Question], AbstractContextManager[None]]

# A question expires by the wall clock, which may be set while it is open.
CLOCK_STEP_S = 3600.0
# A participant's client says the kind of its error and no more. These stay as they are when it is
# asked again; a concept needs none of what is missing.
WITHOUT_SCORES = {
    "PicturesError": "its owner's pictures are not there, and only scores need them",
    "BaseModelError": "its owner's base model is not there, or is another one",
    "StateError": "its owner's disk is full, or may not be written",
}


class FlowerNodes:
    """The nodes of one Flower grid (`mos_server.round.exchange.Nodes`).

    A reply is decoded and read within `reading(question)`. Concepts of more than `concept_bytes`
    are refused by the server's gate.
    """

    def __init__(
        self, grid: HttpGrid, reading: Reading | None = None, *, concept_bytes: int = CONCEPT_BYTES_AT_MOST
    ) -> None:
        self._grid = grid
        self._concept_bytes = concept_bytes
        self._replies = Replies(grid)
        self._reading = reading or (lambda _: nullcontext())
        self._asked: dict[str, Question] = {}
        # When each node last came online, in Flower's words: now, and when a question was asked.
        self._came: dict[int, str] = {}
        self._came_before: dict[str, str] = {}

    def online(self) -> dict[int, str]:
        """Return the nodes that are online: number -> digest of the node's key."""
        nodes = [node for node in self._grid.get_nodes() if node.status == "online"]
        self._came = {node.node_id: node.last_activated_at for node in nodes}
        return {node.node_id: key_digest(node.public_key) for node in nodes}

    def ask(self, question: Question) -> str | None:
        """Send a question as a message and return its id, or None if Flower did not accept it."""
        request = question.request
        if isinstance(request, TrainRequest):
            kind, content = MessageType.TRAIN, messages.train_content(request)
            group = group_of_question(self._concept_bytes)
        else:
            kind, content = MessageType.EVALUATE, messages.evaluate_content(request)
            group = group_of_question(None)
        message = Message(content, question.node, kind, ttl=question.valid_s + CLOCK_STEP_S, group_id=group)
        question_id: str | None = next(iter(self._grid.push_messages([message])), None)
        if question_id:
            self._asked[question_id] = question
            self._came_before[question_id] = self._came.get(question.node, "")
            self._replies.expect(question_id)
        return question_id or None

    def answer(self, question_id: str) -> Answer | Lost | None:
        """Return the reply to one question as a value; None while it has not arrived.

        Anything raised while it is decoded and read costs this answer and nothing else.
        """
        question, came = self._asked[question_id], self._came_before[question_id]
        fetched = self._replies.fetch(question_id)
        if fetched is None and self._came.get(question.node, came) != came:
            # Whoever had the question has ended, or was away for too long. Flower says so only
            # while the node is offline, which may have been for a moment between two polls.
            self._replies.forget(question_id)
            return Lost("its client was started again")
        if not isinstance(fetched, Fetched):
            return fetched
        with self._reading(question):
            try:
                return _read(fetched, question)
            except ConceptError as error:
                return Unusable(one_line(str(error)))
            except Exception as error:  # MemoryError and RecursionError too
                log.warning("the answer of %s cannot be decoded", question.participant.name, exc_info=True)
                return Unusable(f"it cannot be decoded ({type(error).__name__})")


def _read(fetched: Fetched, question: Question) -> Answer | Lost:
    reply = decode(fetched)
    # The sender is known from the question, never from what a reply says about itself.
    if reply.has_error():
        return _without_answer(question, reply.error)
    if isinstance(question.request, TrainRequest):
        upload = messages.read_upload(reply.content)
        return WithOwn(upload.data) if upload.own else upload.data
    return messages.read_identity(reply.content)


def _without_answer(question: Question, error: Error) -> Lost | NoScores:
    kind = error.reason
    if kind in WITHOUT_SCORES and not isinstance(question.request, TrainRequest):
        return NoScores(f"{WITHOUT_SCORES[kind]} ({kind})")
    return Lost(one_line(f"error {error.code}, {kind}"))
