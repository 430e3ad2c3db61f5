"""What an admitted participant may send instead of an answer.

A kind makes an answer of a question and of honest records. `REFUSED` are read once and cost the
participant its answer; `LOST` are asked for again, three times in all; `SILENT` never become an
answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from end_to_end.fleet import Answer, exchanged, framed, honest_answer, replaced
from mos_common import messages

Kind = Callable[[Any, RecordDict], Answer]
HOSTILE_TEXT = "\x1b[31mred\x07\nround-001 failed\u202e" + "x" * 20_000


def records(question: Any, content: RecordDict) -> Answer:
    return honest_answer(question, content)


def _body(kind: str, body: bytes) -> Kind:
    return lambda question, content: replaced(honest_answer(question, content), kind, body)


def _instead(make: Callable[[], RecordDict]) -> Kind:
    return lambda question, _: honest_answer(question, make())


def _many(count: int) -> Kind:
    """Announced alone: thousands of calls to send them would take a test minutes."""

    def kind(question: Any, _content: RecordDict) -> Answer:
        answer = honest_answer(question, RecordDict({f"r{i}": MetricRecord({"a": i}) for i in range(count)}))
        return Answer(answer.message, answer.tree, {})

    return kind


def _another_root(question: Any, content: RecordDict) -> Answer:
    answer = honest_answer(question, content)
    return exchanged(answer, answer.tree.object_id, framed("MetricRecord", b""))


def _deep(question: Any, content: RecordDict) -> Answer:
    return _body("RecordDict", b"[" * 30_000)(question, content)


def _lying_frame(question: Any, content: RecordDict) -> Answer:
    answer = honest_answer(question, content)
    (old,) = [name for name, data in answer.objects.items() if data.startswith(b"RecordDict ")]
    head, _, body = answer.objects[old].partition(b"\x00")
    return exchanged(answer, old, re.sub(rb"\d+$", b"-7x", head) + b"\x00" + body)


def _bomb(question: Any, _content: RecordDict) -> Answer:
    """One piece of 4 MiB, named 15,000 times by its array: 60 GB."""
    piece = Array(dtype="uint8", shape=(4 << 20,), stype="numpy.ndarray", data=bytes(4 << 20))
    content = RecordDict({"concept": ArrayRecord({"file": piece}), "numbers": MetricRecord({"seconds": 1.0})})
    about = {"dtype": "uint8", "shape": [4 << 20], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 15_000}
    return replaced(honest_answer(question, content), "Array", json.dumps(about).encode())


def _many_arrays(question: Any, _content: RecordDict) -> Answer:
    """One piece of 5 MiB below 20 arrays, each of which names it 12 times: 1.2 GB in 25 objects."""
    piece = 5 << 20
    arrays = {
        str(n): Array(dtype="uint8", shape=(piece - n,), stype="numpy.ndarray", data=bytes(piece)) for n in range(20)
    }
    content = RecordDict({"concept": ArrayRecord(arrays), "numbers": MetricRecord({"seconds": 1.0})})
    answer = honest_answer(question, content)
    for name, data in [(name, data) for name, data in answer.objects.items() if data.startswith(b"Array ")]:
        head, _, body = data.partition(b"\x00")
        about = json.dumps(json.loads(body) | {"arraychunk_ids": [0] * 12}).encode()
        answer = exchanged(answer, name, framed("Array", about, (head.decode().split(" ")[1],)))
    return answer


def _half(question: Any, content: RecordDict) -> Answer:
    """An answer without its message object, the only one that is like no other answer's."""
    answer = honest_answer(question, content)
    answer.objects.pop(answer.tree.object_id)
    return answer


def _other_message(question: Any, content: RecordDict) -> Answer:
    answer = honest_answer(question, content)
    answer.message.metadata.reply_to_message_id = "0" * 64
    return answer


def _other_tree(question: Any, content: RecordDict) -> Answer:
    answer = honest_answer(question, content)
    return Answer(answer.message, ObjectTree(object_id="0" * 64), {})


def _scores(*values: float) -> Kind:
    names = ("class_word", "single", "fused", "ceiling")
    return _instead(lambda: RecordDict({"identity": MetricRecord(dict(zip(names, values, strict=True)))}))


REFUSED: dict[str, Kind] = {
    "an undecodable body": _body("RecordDict", b"\xff\xfe"),
    "a body that is no mapping": _body("RecordDict", b"7"),
    "records that are named and not there": _body("RecordDict", b'{"concept": "00"}'),
    "a body of 30,000 brackets": _deep,
    "a message that cannot be parsed": _body("Message", b"\xff\xff\xff\xff"),
    "a root that is no message": _another_root,
    "a frame that lies": _lying_frame,
    "records of the wrong kind": _instead(lambda: RecordDict({"concept": ConfigRecord({"a": 1})})),
    "no records": _instead(RecordDict),
    "names of records that move the cursor": _instead(lambda: RecordDict({HOSTILE_TEXT: ConfigRecord()})),
    "a text of 3 MB": _instead(lambda: RecordDict({"round": ConfigRecord({"a": "x" * 3_000_000})})),
    "a million numbers": _instead(lambda: RecordDict({"identity": MetricRecord({"a": [1] * 1_000_000})})),
    "200 objects": _many(200),
    "10,000 objects": _many(10_000),
    "an array that grows to 60 GB": _bomb,
    "arrays that share their pieces": _many_arrays,
    "numbers that are not finite": _scores(float("nan"), float("inf"), 0.5, 0.5),
    "huge whole numbers": _scores(2**63 - 1, -(2**63), 0, 0),
    "huge seconds": _instead(
        lambda: RecordDict(
            {
                "concept": messages.upload_content(messages.Upload(b"x", 1.0))["concept"],
                "numbers": MetricRecord({"seconds": float("inf"), "bytes": 2**63 - 1}),
            }
        )
    ),
}
# Nothing of these reaches a round: the gate refuses more than 136 objects, Flower's store a frame
# that does not say how long it is.
NOT_STORED = ("200 objects", "10,000 objects", "a frame that lies")
LOST: dict[str, Kind] = {
    "an error with a strange code": lambda question, _: honest_answer(question, Error(2**31 - 1, HOSTILE_TEXT)),
    "an error of a negative code": lambda question, _: honest_answer(question, Error(-(2**31), "")),
}
SILENT: dict[str, Kind] = {
    "half of its objects": _half,
    "an answer to another question": _other_message,
}
"""Flower takes none of these as an answer, or waits for the rest of it."""
OF_ANOTHER_TREE: Kind = _other_tree
