"""A participant written by hand: it speaks Flower's Fleet API with an admitted key, and may lie.

`FleetClient` activates its node, sends heartbeats, pulls questions, and pushes whatever a test
tells it to, object by object. `Answer` is what it pushes; `honest_answer` is one that a SuperNode
would push, and tests change it before it goes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Error, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, node_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from mos_client.federation.enrolment import enrol
from mos_common.kit import read_kit

HEARTBEAT_S = 10.0


@dataclass
class Answer:
    """What is pushed: the message without content, its tree of objects, and the objects by id."""

    message: Any
    tree: Any
    objects: dict[str, bytes] = field(default_factory=dict)


class FleetClient:
    """One admitted key, enrolled with `kit` into the folder `state`; `questions` came to it.

    It counts as online for twice `heartbeat_s` after each heartbeat; Flower takes 10 s or more.
    """

    def __init__(self, kit: Path, state: Path, *, heartbeat_s: float = 30.0) -> None:
        opened = read_kit(kit)
        key = enrol(opened, state).key
        self.client = FleetHttpClient.from_server_address(
            opened.fleet,
            False,
            opened.ca.encode(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        )
        self.questions: list[Any] = []
        self._trees: dict[str, Any] = {}
        self._heartbeat_s = heartbeat_s
        self._public = public_key_to_bytes(key.public_key())
        self.node: Any = None

    def activate(self) -> None:
        """Be online from now on."""
        reply = self.client.ActivateNode(
            fleet_pb2.ActivateNodeRequest(public_key=self._public, heartbeat_interval=self._heartbeat_s)
        )
        self.node = node_pb2.Node(node_id=reply.node_id)

    def close(self) -> None:
        """Close the connection; the server takes the node for online a while longer."""
        self.client.close()

    def beat(self) -> None:
        """Send one heartbeat."""
        self.client.SendNodeHeartbeat(
            heartbeat_pb2.SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=self._heartbeat_s)
        )

    def pull(self) -> Any:
        """Return the next question as Flower's protobuf message, or None if there is none."""
        reply = self.client.PullMessages(fleet_pb2.PullMessagesRequest(node=self.node))
        if not reply.messages_list:
            return None
        question = reply.messages_list[0]
        self.questions.append(question)
        self._trees[question.metadata.message_id] = reply.message_object_trees[0]
        return question

    def read(self, question: Any) -> RecordDict:
        """Return the contents of a question, fetched object by object as a SuperNode does."""
        tree, run_id = self._trees.pop(question.metadata.message_id), question.metadata.run_id
        contents: dict[str, bytes] = {}
        for each in iterate_object_tree(tree):
            request = message_pb2.PullObjectRequest(node=self.node, run_id=run_id, object_id=each.object_id)
            while not (reply := self.client.PullObject(request)).object_available:
                if not reply.object_found:
                    raise httpx.HTTPError("the question was taken back")
                time.sleep(0.2)  # a question is there before its objects are
            contents[each.object_id] = reply.object_content
        received = message_pb2.ConfirmMessageReceivedRequest(
            node=self.node, run_id=run_id, message_object_id=tree.object_id
        )
        self.client.ConfirmMessageReceived(received)
        content: RecordDict = inflate_object_from_contents(tree.object_id, contents).content
        return content

    def push(self, answer: Answer) -> set[str]:
        """Push an answer with its objects; return the ids of those that the server wanted."""
        reply = self.client.PushMessages(
            fleet_pb2.PushMessagesRequest(
                node=self.node,
                messages_list=[answer.message],
                message_object_trees=[answer.tree],
                clientapp_runtime_list=[0.1],
            )
        )
        for object_id in set(reply.objects_to_push) & answer.objects.keys():
            self.client.PushObject(
                message_pb2.PushObjectRequest(
                    node=self.node,
                    run_id=answer.message.metadata.run_id,
                    object_id=object_id,
                    object_content=answer.objects[object_id],
                    session_id=reply.session_id,
                )
            )
        return set(reply.objects_to_push)

    @contextmanager
    def answering(self, answers: Callable[[Any], Answer | None]) -> Iterator[FleetClient]:
        """Be online within the block, and push `answers(question)` for every question that comes.

        None stands for silence. What the server refuses to take is no error here.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._work, args=(answers, stop), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(30)

    def _work(self, answers: Callable[[Any], Answer | None], stop: threading.Event) -> None:
        beaten = 0.0
        while not stop.wait(0.3):
            try:
                if self.node is None:
                    self.activate()
                if time.monotonic() - beaten > HEARTBEAT_S:
                    self.beat()
                    beaten = time.monotonic()
                question = self.pull()
                answer = None if question is None else answers(question)
                if answer is not None:
                    self.push(answer)
            except httpx.HTTPError:
                continue


def honest_answer(question: Any, content: RecordDict | Error) -> Answer:
    """Return the answer that a SuperNode would push to a question, with this content."""
    asked = question.metadata
    metadata = Metadata(
        run_id=asked.run_id,
        message_id="",
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=time.time(),
        ttl=max(1.0, asked.created_at + asked.ttl - time.time() - 1),
        message_type=asked.message_type,
    )
    given = {"error": content} if isinstance(content, Error) else {"content": content}
    message = make_message(metadata=metadata, **given)
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = {name: each.deflate() for name, each in get_all_nested_objects(message).items()}
    tree = get_object_tree(message)
    proto = message_to_proto(remove_content_from_message(message))
    return Answer(proto, tree, objects)


def framed(kind: str, body: bytes, children: tuple[str, ...] = (), *, length: int | None = None) -> bytes:
    """Return an object as Flower frames it: kind, children, length, a zero byte, body."""
    size = len(body) if length is None else length
    return f"{kind} {','.join(children)} {size}".encode() + b"\x00" + body


def replaced(answer: Answer, kind: str, body: bytes, children: tuple[str, ...] | None = None) -> Answer:
    """Return the answer with the body of its object of one kind replaced, hashed and framed anew.

    The objects above it are framed anew too, since they name their children by digest.
    """
    (old,) = [name for name, data in answer.objects.items() if data.startswith(kind.encode() + b" ")]
    kept = answer.objects[old].partition(b"\x00")[0].decode().split(" ")[1]
    data = framed(kind, body, tuple(kept.split(",")) if children is None and kept else children or ())
    return exchanged(answer, old, data)


def exchanged(answer: Answer, old: str, data: bytes) -> Answer:
    """Return the answer with one object exchanged for `data`; digests above it follow."""
    new = hashlib.sha256(data).hexdigest()
    objects = {name: each for name, each in answer.objects.items() if name != old} | {new: data}
    tree = message_pb2.ObjectTree()
    tree.CopyFrom(answer.tree)
    _rename(tree, old, new)
    message = type(answer.message)()
    message.CopyFrom(answer.message)
    if message.metadata.message_id == old:
        message.metadata.message_id = new
    changed = Answer(message, tree, objects)
    above = [name for name, each in objects.items() if name != new and old.encode() in each]
    for name in above:
        renamed = _head_renamed(changed.objects[name], old, new)
        changed = exchanged(changed, name, renamed)
    return changed


def _head_renamed(data: bytes, old: str, new: str) -> bytes:
    head, _, body = data.partition(b"\x00")
    return head.replace(old.encode(), new.encode()) + b"\x00" + body.replace(old.encode(), new.encode())


def _rename(tree: Any, old: str, new: str) -> None:
    if tree.object_id == old:
        tree.object_id = new
    for child in tree.children:
        _rename(child, old, new)
