"""Fetch one reply from Flower piece by piece, and decode it where a failure costs that reply alone.

`Grid.pull_messages` decodes what strangers sent before we have it, without a bound, and waits an
hour for objects that never come. Here a reply is fetched under bounds on number and bytes, without
waiting, and decoded with Flower's own functions inside our handling.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flwr.app import Array, Message

from mos_common.errors import ConceptError
from mos_common.round_requests import CONCEPT_BYTES_AT_MOST, OBJECTS_AT_MOST
from mos_server.round.exchange import Lost, Unusable

if TYPE_CHECKING:
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.superlink.grid import HttpGrid

log = logging.getLogger(__name__)

# The bytes of a concept are counted while they come.
BYTES_AT_MOST = CONCEPT_BYTES_AT_MOST + (1 << 20)
# Everything but an array's pieces is names and numbers.
SMALL_BYTES_AT_MOST = 64 << 10
# Flower forgets an upload of which nothing has come for 180 s.
STALLS_S = 200.0
# Our own Flower fails now and then, as while the disk is full: polls before the reply is lost.
TRIES = 10
# Questions of which Flower is asked at once: their ids are 16 kB, a fourth of what a call may have.
AT_ONCE = 256
_TOO_LARGE = 413
_OURS = (401, 403)  # this run has ended, or its token has: no reply is to blame


@dataclass(frozen=True)
class Fetched:
    """A reply as it came: the id of its message object, and every object's bytes by id.

    Decoding empties it, so that a large reply is not held twice.
    """

    root: str
    contents: dict[str, bytes]


@dataclass
class _Arriving:
    """A reply whose message is here; `seen` of its objects are too, when it was last looked at."""

    root: str
    object_ids: list[str]
    seen: int = 0
    progressed: float = field(default_factory=time.monotonic)


class Replies:
    """Replies of one Flower run, by the question that they answer.

    Flower is asked about all questions that are open in one call, so that a poll costs the same
    for one participant as for a hundred.
    """

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._open: dict[str, None] = {}
        # What the last call brought, and the first look at it has not taken yet.
        self._looked: dict[str, _Arriving | Unusable | None] = {}
        self._arriving: dict[str, _Arriving] = {}
        self._failures: dict[str, int] = {}

    def expect(self, question_id: str) -> None:
        """Look for the reply to this question too, until it is fetched or forgotten."""
        self._open[question_id] = None

    def forget(self, question_id: str) -> None:
        """Look for the reply to this question no longer."""
        self._open.pop(question_id, None)
        self._failures.pop(question_id, None)
        looked, arriving = self._looked.pop(question_id, None), self._arriving.pop(question_id, None)
        for each in (looked, arriving):
            if isinstance(each, _Arriving):
                self._forget(each.root)

    def fetch(self, question_id: str) -> Fetched | Lost | Unusable | None:
        """Return the reply to one question, undecoded; None while it, or a part of it, is to come.

        A reply that breaks a bound is Unusable, and what Flower stored of it is given up.

        Raises:
            httpx.HTTPError: Flower does not answer, or this run has ended (and Flower's
                RunNotRunningException, which is a BaseException).

        """
        import httpx
        from google.protobuf.message import DecodeError

        try:
            outcome = self._fetch(question_id)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status == _TOO_LARGE:
                outcome = Unusable("it is too large to be handed over")
            elif status in _OURS:
                raise
            else:
                self._failures[question_id] = failures = self._failures.get(question_id, 0) + 1
                if failures < TRIES:
                    return None
                outcome = Lost(f"Flower cannot hand it over (HTTP {status})")
        except (DecodeError, ValueError, TypeError, LookupError, MemoryError, RecursionError) as error:
            log.warning("a reply cannot be fetched", exc_info=True)
            outcome = Unusable(f"it cannot be fetched ({type(error).__name__})")
        if outcome is not None:
            self.forget(question_id)
        return outcome

    def _fetch(self, question_id: str) -> Fetched | Lost | Unusable | None:
        arriving = self._arriving.get(question_id)
        if arriving is None:
            claimed = self._claimed(question_id)
            if not isinstance(claimed, _Arriving):
                return claimed
            arriving = self._arriving[question_id] = claimed
            if len(arriving.object_ids) > OBJECTS_AT_MOST:
                return Unusable(f"has {len(arriving.object_ids)} objects: expected at most {OBJECTS_AT_MOST}")
        return self._objects(arriving)

    def _claimed(self, question_id: str) -> _Arriving | Unusable | None:
        """Claim the reply: Flower hands out each message once, and its objects until we confirm."""
        if question_id not in self._looked:
            waiting = [each for each in self._open if self._looked.get(each) is None and each not in self._arriving]
            self._look([question_id, *(each for each in waiting if each != question_id)][:AT_ONCE])
        return self._looked.pop(question_id, None)

    def _look(self, question_ids: list[str]) -> None:
        """Claim all replies to these questions that are there. Each is taken by its next fetch.

        Where that fails, it may be for one of them: the first is then asked about alone.
        """
        import httpx
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest
        from google.protobuf.message import DecodeError

        pull = self._grid._runtime_client.PullMessages
        try:
            reply = pull(PullAppMessagesRequest(message_ids=question_ids))
        except (httpx.HTTPStatusError, DecodeError) as error:
            ours = isinstance(error, httpx.HTTPStatusError) and error.response.status_code in _OURS
            if len(question_ids) == 1 or ours:
                raise
            question_ids = question_ids[:1]
            reply = pull(PullAppMessagesRequest(message_ids=question_ids))
        self._looked |= dict.fromkeys(question_ids)
        unasked = 0
        for message, tree in zip(reply.messages_list, reply.message_object_trees, strict=True):
            answered = message.metadata.reply_to_message_id
            if answered not in self._looked:  # Flower hands over what was sent to this run unasked along with it
                unasked += 1
                if unasked <= OBJECTS_AT_MOST:  # the rest goes when the run ends
                    self._forget(tree.object_id)
            elif tree.object_id != message.metadata.message_id:
                self._forget(tree.object_id)
                self._looked[answered] = Unusable("its objects belong to another message")
            else:
                self._looked[answered] = _Arriving(tree.object_id, list(dict.fromkeys(_object_ids(tree))))

    def _objects(self, arriving: _Arriving) -> Fetched | Lost | Unusable | None:
        """Pull the objects one by one. Those of a reply that is incomplete are not held."""
        for object_id in arriving.object_ids[arriving.seen :] if arriving.seen else ():
            if not isinstance(self._object(object_id), bytes):
                return self._missing(arriving)
            arriving.seen, arriving.progressed = arriving.seen + 1, time.monotonic()
        contents: dict[str, bytes] = {}
        size = 0
        for number, object_id in enumerate(arriving.object_ids):
            content = self._object(object_id)
            if isinstance(content, Lost):
                return content
            if content is None:
                if number > arriving.seen:
                    arriving.seen, arriving.progressed = number, time.monotonic()
                return self._missing(arriving)
            size += len(content)
            if size > BYTES_AT_MOST:
                return Unusable(f"has more than {BYTES_AT_MOST} bytes")
            contents[object_id] = content
        return Fetched(arriving.root, contents)

    def _missing(self, arriving: _Arriving) -> Lost | None:
        if time.monotonic() - arriving.progressed < STALLS_S:
            return None
        return Lost(f"only {arriving.seen} of its {len(arriving.object_ids)} objects came")

    def _object(self, object_id: str) -> bytes | Lost | None:
        from flwr.proto.message_pb2 import PullObjectRequest

        reply = self._grid._runtime_client.PullObject(
            PullObjectRequest(node=self._grid.node, run_id=self._grid.run.run_id, object_id=object_id)
        )
        if not reply.object_found:
            return Lost("its objects did not all come")
        return bytes(reply.object_content) if reply.object_available else None

    def _forget(self, root: str) -> None:
        """Tell Flower that a reply was received, so that it deletes its objects."""
        import httpx
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        request = ConfirmMessageReceivedRequest(
            node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=root
        )
        try:
            self._grid._runtime_client.ConfirmMessageReceived(request)
        except httpx.HTTPStatusError as error:
            log.warning("Flower keeps a reply that was fetched (HTTP %s)", error.response.status_code)


def decode(fetched: Fetched) -> Message:
    """Return the message in a reply, decoded by Flower, after checks of what decoding will cost.

    Whatever else is raised on the way is the reply's fault as well; the caller decides.

    Raises:
        ConceptError: an object is too large for its kind, or the reply is no message.

    """
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    # Arrays may name the same pieces, each of them once or ten thousand times.
    size = sum(_array_bytes(content, fetched.contents) for content in fetched.contents.values())
    if size > BYTES_AT_MOST:
        raise ConceptError(f"has arrays of {size} bytes: expected at most {BYTES_AT_MOST}")
    message = inflate_object_from_contents(fetched.root, fetched.contents)
    if not isinstance(message, Message):
        raise ConceptError(f"is a {type(message).__name__}: expected a Message")
    return message


def _array_bytes(content: bytes, contents: dict[str, bytes]) -> int:
    """Return what an object's array will take once its pieces are joined; 0 if it is no array.

    Raises:
        ConceptError: the object is too large for its kind.

    """
    from flwr.supercore.inflatable.inflatable_object import (
        get_object_body,
        get_object_head_values_from_object_content,
    )

    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind != "ArrayChunk" and len(content) > SMALL_BYTES_AT_MOST:
        raise ConceptError(f"has an object {kind} of {len(content)} bytes: expected at most {SMALL_BYTES_AT_MOST}")
    if kind != "Array":
        return 0
    pieces: Any = json.loads(get_object_body(content, Array))["arraychunk_ids"]
    return sum(len(contents[children[number]]) for number in pieces)


def _object_ids(tree: ObjectTree) -> Iterator[str]:
    """Yield the ids below a tree before its own, as they are pushed."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    for each in iterate_object_tree(tree):
        yield each.object_id
