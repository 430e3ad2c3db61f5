"""A Flower grid in this process: the runtime calls of a SuperLink, with Flower's own messages.

What nodes push lies here object by object, as in Flower's store, and is handed out undecoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto import message_pb2, node_pb2, runtime_pb2
from flwr.serverapp import Grid

from end_to_end.fleet import Answer, honest_answer

Given = RecordDict | Error | Answer | None


class MemoryGrid(Grid):
    """`nodes` maps numbers to a key, a status, and a function that answers a message.

    An answer is records, an error, silence (None), or an `Answer` object by object.
    """

    def __init__(self, nodes: dict[int, tuple[bytes, str, Callable[[Message], Given]]]) -> None:
        self.nodes = nodes
        self.sent: list[Message] = []
        self.node = node_pb2.Node(node_id=1)
        self._runtime_client = MemoryRuntime()

    @property
    def run(self):
        return SimpleNamespace(run_id=1)

    def get_nodes(self) -> Iterable[node_pb2.NodeInfo]:
        for number, (key, status, _) in self.nodes.items():
            yield node_pb2.NodeInfo(node_id=number, public_key=key, status=status)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            question_id = f"message-{len(self.sent)}"
            self.sent.append(message)
            question = message_to_proto(message)
            question.metadata.message_id = question_id
            answer = self.nodes[message.metadata.dst_node_id][2](message)
            if callable(answer):
                answer = answer(question)
            if answer is not None:
                honest = isinstance(answer, RecordDict | Error)
                self._runtime_client.push(honest_answer(question, answer) if honest else answer, question_id)
            yield question_id

    def _unused(self, *_given: object, **_named: object) -> None:
        raise NotImplementedError

    set_run = create_message = send_and_receive = get_node_ids = pull_messages = _unused


class MemoryRuntime:
    """The four calls with which replies are fetched; `pulled` counts the objects handed out."""

    def __init__(self) -> None:
        self.replies: dict[str, Answer] = {}
        self.objects: dict[str, bytes | None] = {}
        self.confirmed: list[str] = []
        self.pulled = 0

    def push(self, answer: Answer, question_id: str) -> None:
        self.replies[question_id] = answer
        for object_id in ids(answer.tree):
            self.objects.setdefault(object_id, None)
        self.objects |= answer.objects

    def PullMessages(self, request: Any) -> Any:
        answers = [self.replies.pop(each) for each in request.message_ids if each in self.replies]
        return runtime_pb2.PullAppMessagesResponse(
            messages_list=[each.message for each in answers], message_object_trees=[each.tree for each in answers]
        )

    def PullObject(self, request: Any) -> Any:
        found = request.object_id in self.objects
        content = self.objects.get(request.object_id)
        self.pulled += content is not None
        return message_pb2.PullObjectResponse(
            object_found=found, object_available=content is not None, object_content=content or b""
        )

    def ConfirmMessageReceived(self, request: Any) -> Any:
        self.confirmed.append(request.message_object_id)
        return message_pb2.ConfirmMessageReceivedResponse()


def ids(tree: Any) -> list[str]:
    """The ids of a tree of objects."""
    return [tree.object_id, *(each for child in tree.children for each in ids(child))]
