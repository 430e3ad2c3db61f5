"""What the public port lets through to Flower: signed Fleet calls, and answers that were asked for.

Flower stores whatever an admitted node pushes and hands it to the round whole. So the bounds hold
here, before it is stored: one answer to a question that is open for this node, in few objects, of
as many bytes as the question says. A round writes into each question what an answer to it needs:
the largest concept of its base, or a few numbers.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from mos_common.errors import StateError, TrustError
from mos_common.node_key import key_digest
from mos_common.round_requests import CONCEPT_BYTES_AT_MOST, OBJECTS_AT_MOST
from mos_server.network.gate import Headers, RefusedError
from mos_server.network.pace import LEAST_BYTES_PER_S

_FEW, _TREE, _OBJECT = 4 << 10, 64 << 10, 6 << 20
# How long the largest body may take at the least rate, and then wait for its turn.
REQUEST_S_AT_MOST = 2 * _OBJECT // LEAST_BYTES_PER_S
KEY, TIME, SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
_HEADER_BYTES_AT_MOST = 4096
# What Flower writes around the bytes of a concept: names, types, lists of chunks.
_FRAME_BYTES = 1 << 20
ANSWER_BYTES_AT_MOST = CONCEPT_BYTES_AT_MOST + _FRAME_BYTES
# Scores are four numbers. What is larger, and still one object, is refused by its sender's name
# when the round reads it.
SCORES_BYTES_AT_MOST = 4 << 20
# Flower's client repeats a push whose reply was lost.
_PUSHES_AT_MOST = 8


class FleetPort:
    """The Fleet API for admitted keys. `link` returns Flower's record of nodes and messages."""

    # register-node and unregister-node are left out: enrolment decides which keys are nodes.
    calls: Mapping[str, int] = {
        "/v1/fleet/activate-node": _FEW,
        "/v1/fleet/deactivate-node": _FEW,
        "/v1/fleet/send-node-heartbeat": _FEW,
        "/v1/fleet/pull-messages": _FEW,
        "/v1/fleet/push-messages": _TREE,
        "/v1/fleet/get-run": _FEW,
        "/v1/fleet/get-fab": _FEW,
        "/v1/fleet/push-object": _OBJECT,
        "/v1/fleet/pull-object": _FEW,
        "/v1/fleet/confirm-message-received": _FEW,
    }
    passed = frozenset({KEY, TIME, SIGNATURE, b"flwr-package-name", b"flwr-package-version", b"flwr-component-name"})

    def __init__(self, admitted: Callable[[str], bool], link: Callable[[], Any]) -> None:
        self._admitted = admitted
        self._link = link
        self._answers: dict[tuple[int, str], _Answer] = {}
        self._lock = threading.Lock()

    def identify(self, headers: Headers) -> str:
        """Return the digest of the admitted key that signed the time in the headers.

        Raises:
            TrustError: the key is not admitted, or the signature is not the key's.

        """
        if not all(0 < len(headers.get(name, b"")) <= _HEADER_BYTES_AT_MOST for name in (KEY, TIME, SIGNATURE)):
            raise TrustError("the call is not signed")
        try:
            pem = base64.b64decode(headers[KEY], validate=True)
            digest = key_digest(pem)
            if not self._admitted(digest):
                raise TrustError(f"key {digest[:12]} is not admitted")
            signature = base64.b64decode(headers[SIGNATURE], validate=True)
            _check_signature(pem, headers[TIME].decode("ascii"), signature)
        except (binascii.Error, ValueError, TypeError) as error:
            raise TrustError(f"the call is not signed: {error}") from error
        return digest

    def admits(self, key: str) -> bool:
        """Return whether a key is admitted now."""
        return self._admitted(key)

    def inspect(self, path: str, headers: Headers, body: bytes) -> None:
        """Judge what a node wants to store.

        Raises:
            RefusedError: it is not an answer that was asked for, or too much.
            StateError: Flower's database cannot be read now.

        """
        try:
            if path == "/v1/fleet/push-messages":
                self._inspect_answer(_node(self._link(), headers), body)
            elif path == "/v1/fleet/push-object":
                self._inspect_object(_node(self._link(), headers), body)
        except SQLAlchemyError as error:
            raise StateError(f"Flower's database cannot be read: {error.args[0]}") from error

    def _inspect_answer(self, node: int, body: bytes) -> None:
        from flwr.proto.fleet_pb2 import PushMessagesRequest

        request = _parsed(PushMessagesRequest, body)
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise RefusedError(400, "expected one answer with its objects")
        metadata = request.messages_list[0].metadata
        question = self._link().get_valid_message_ins(metadata.reply_to_message_id)
        if question is None or metadata.src_node_id != node or _unsigned(question["dst_node_id"]) != node:
            raise RefusedError(403, "an answer to no question that is open for this node")
        if request.messages_list[0].content.ByteSize() or len(request.clientapp_runtime_list) > 1:
            raise RefusedError(400, "an answer carries its contents in objects")
        objects = _objects(request.message_object_trees[0])
        with self._lock:
            self._forget_closed(node)
            answer = self._answers.setdefault(
                (node, metadata.reply_to_message_id),
                _Answer(metadata.message_id, frozenset(objects), _most_bytes(question)),
            )
            answer.pushes += 1
            if answer.id != metadata.message_id or answer.objects != frozenset(objects):
                raise RefusedError(403, "another answer to the same question")
            if answer.pushes > _PUSHES_AT_MOST:
                raise RefusedError(429, "the same answer again and again")

    def _inspect_object(self, node: int, body: bytes) -> None:
        from flwr.proto.message_pb2 import PushObjectRequest

        request = _parsed(PushObjectRequest, body)
        with self._lock:
            mine = [answer for (of, _), answer in self._answers.items() if of == node]
            answer = next((each for each in mine if request.object_id in each.objects), None)
            if answer is None:
                raise RefusedError(403, "an object of no answer of this node")
            # The size of an object counts once, however often it is sent.
            size = max(len(request.object_content), answer.sizes.get(request.object_id, 0))
            others = sum(each for name, each in answer.sizes.items() if name != request.object_id)
            if others + size > answer.most:
                raise RefusedError(413, f"an answer of more than {answer.most} bytes")
            answer.sizes[request.object_id] = size

    def _forget_closed(self, node: int) -> None:
        link = self._link()
        for key in [key for key in self._answers if key[0] == node]:
            if link.get_valid_message_ins(key[1]) is None:
                del self._answers[key]


@dataclass
class _Answer:
    """One answer on its way: its message, its objects, and the bytes that have come of each.

    All of them may have `most` bytes together.
    """

    id: str
    objects: frozenset[str]
    most: int
    sizes: dict[str, int] = field(default_factory=dict)
    pushes: int = 0


def group_of_question(concept_bytes: int | None) -> str:
    """Return Flower's group of a question that asks for a concept of a size, or (None) for scores.

    Flower keeps a question's group and does nothing with it: it says how large an answer may be.
    """
    return str(SCORES_BYTES_AT_MOST if concept_bytes is None else concept_bytes + _FRAME_BYTES)


def _most_bytes(question: Mapping[str, Any]) -> int:
    """Return how many bytes an answer to a question may have; earlier releases did not say it."""
    said = str(question["group_id"])
    return min(int(said), ANSWER_BYTES_AT_MOST) if said.isdecimal() else ANSWER_BYTES_AT_MOST


def _check_signature(pem: bytes, time: str, signature: bytes) -> None:
    """Check that a key signed a time within Flower's tolerance, as Flower does.

    Raises:
        ValueError: it did not, or the key or the time is written in another way than Flower's.

    """
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
    from flwr.supercore.date import now
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, verify_signature

    key = bytes_to_public_key(pem)
    if public_key_to_bytes(key) != pem:  # Flower compares keys as text
        raise ValueError("the key is not written as Flower writes it")
    age = (now() - dt.datetime.fromisoformat(time)).total_seconds()
    if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
        raise ValueError(f"signed {age:.0f} s ago")
    if not verify_signature(key, time.encode("ascii"), signature):
        raise ValueError("the signature is not the key's")


def _node(link: Any, headers: Headers) -> int:
    node = link.get_node_id_by_public_key(base64.b64decode(headers[KEY]))
    if node is None:
        raise RefusedError(401, "the key has no node")
    return int(node)


def _parsed(kind: Any, body: bytes) -> Any:
    from google.protobuf.message import DecodeError

    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise RefusedError(400, f"not a {kind.__name__}: {error}") from error
    return message


def _objects(tree: Any) -> list[str]:
    """Return the ids of a tree of objects, which are few."""
    waiting, found = [tree], []
    while waiting:
        node = waiting.pop()
        found.append(str(node.object_id))
        waiting.extend(node.children)
        if len(found) + len(waiting) > OBJECTS_AT_MOST:
            raise RefusedError(413, f"an answer of more than {OBJECTS_AT_MOST} objects")
    return found


def _unsigned(number: int) -> int:
    """Return a node's number, which Flower's database stores as a signed one."""
    return number % (1 << 64)
