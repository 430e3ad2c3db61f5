"""The participants' machines on Flower: questions become messages, replies become values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Message, MessageType

from mos_common import messages
from mos_common.errors import ConceptError
from mos_common.node_key import key_digest
from mos_common.round_requests import TrainRequest
from mos_server.round.exchange import Answer, Lost, NoScores, Question, Unusable

if TYPE_CHECKING:
    from flwr.app import Error
    from flwr.serverapp import Grid

# A participant's client says the kind of its error and no more. These stay as they are when it is
# asked again; a concept needs none of what is missing.
WITHOUT_SCORES = {
    "PicturesError": "its owner's pictures are not there, and only scores need them",
    "BaseModelError": "its owner's base model is not there, or is another one",
    "StateError": "its owner's disk is full, or may not be written",
}


class FlowerNodes:
    """The nodes of one Flower grid (`mos_server.round.exchange.Nodes`)."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._asked: dict[str, Question] = {}

    def online(self) -> dict[int, str]:
        """Return the nodes that are online: number -> digest of the node's key."""
        return {node.node_id: key_digest(node.public_key) for node in self._grid.get_nodes() if node.status == "online"}

    def ask(self, question: Question) -> str | None:
        """Send a question as a message and return its id, or None if Flower did not accept it."""
        request = question.request
        if isinstance(request, TrainRequest):
            kind, content = MessageType.TRAIN, messages.train_content(request)
        else:
            kind, content = MessageType.EVALUATE, messages.evaluate_content(request)
        message = Message(content, question.node, kind, ttl=question.valid_s)
        question_id: str | None = next(iter(self._grid.push_messages([message])), None)
        if question_id:
            self._asked[question_id] = question
        return question_id or None

    def answer(self, question_id: str) -> Answer | Lost | None:
        """Return the reply to one question as a value; None while it has not arrived."""
        reply = next(iter(self._grid.pull_messages([question_id])), None)
        if reply is None:
            return None
        if reply.has_error():
            return self._without_answer(question_id, reply.error)
        # The sender is known from the question, never from what a reply says about itself.
        if reply.metadata.reply_to_message_id != question_id:
            return Lost("it answered another question")
        try:
            if isinstance(self._asked[question_id].request, TrainRequest):
                return messages.read_upload(reply.content).data
            return messages.read_identity(reply.content)
        except ConceptError as error:
            return Unusable(str(error))

    def _without_answer(self, question_id: str, error: Error) -> Lost | NoScores:
        kind = error.reason
        if kind in WITHOUT_SCORES and not isinstance(self._asked[question_id].request, TrainRequest):
            return NoScores(f"{WITHOUT_SCORES[kind]} ({kind})")
        return Lost(f"error {error.code}, {kind}")
