"""What somebody sends to do harm: hostile answers, and protobuf that no library writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2

from end_to_end.fleet import Answer, exchanged, framed, honest_answer, replaced
from end_to_end.hostile import LOST, OF_ANOTHER_TREE, REFUSED, SILENT
from fuzz.reader import SEPARATOR
from fuzz.wire import SCORES, question_for, within_a_run
from mos_common import messages
from mos_common.round_requests import TrainRequest
from reference.flower_grid import ids

NESTED = '{"a": ' * 5000 + "1" + "}" * 5000
BODIES = {
    "a body that ends early": b'{"a": "', "a body of many digits": b"9" * 60_000, "a body of NaN": b"NaN",
    "a body of null": b"null", "a body of surrogates": b'{"\\ud800": "00"}', "a nested body": NESTED.encode(),
    "a body of numbers": b"[1, 2]", "a body of 60,000 names": json.dumps(dict.fromkeys(map(str, range(5000)))).encode(),
}  # fmt: skip
ARRAYS: dict[str, dict[str, Any]] = {
    "pieces below zero": {"arraychunk_ids": [-1]}, "pieces that are true": {"arraychunk_ids": [True]},
    "pieces that are not there": {"arraychunk_ids": [2**31]}, "pieces by name": {"arraychunk_ids": "00"},
    "pieces in an object": {"arraychunk_ids": {"0": 0}}, "no pieces": {"arraychunk_ids": []},
    "no shape": {"shape": None}, "a shape of terabytes": {"shape": [2**60]}, "a shape of words": {"shape": ["a"]},
    "a type that is called": {"dtype": "__import__('os').system('x')"}, "objects of Python": {"dtype": "object"},
    "a pickle": {"stype": "pickle"}, "a long type": {"dtype": "u" * 60_000}, "one more key": {"more": 1},
}  # fmt: skip


def answers(_good: bytes) -> dict[str, bytes]:
    """Answers of all kinds that tests of real rounds send, and of some more."""
    with within_a_run():
        question = message_to_proto(question_for(TrainRequest("round-001", "ab" * 32)))
        question.metadata.message_id = "message-0"
        kinds = REFUSED | LOST | SILENT | {"another tree": OF_ANOTHER_TREE}
        made = {f"{name}, {of}": kind(question, content) for name, kind in kinds.items() for of, content in _contents()}
        upload = honest_answer(question, dict(_contents())["concept"])
        made |= {name: replaced(upload, "RecordDict", body) for name, body in BODIES.items()}
        made |= {f"numbers with {name}": replaced(upload, "MetricRecord", body) for name, body in BODIES.items()}
        about = {"dtype": "uint8", "shape": [129], "stype": "numpy.ndarray", "arraychunk_ids": [0]}
        for name, changes in ARRAYS.items():
            made[name] = replaced(upload, "Array", json.dumps(about | changes).encode())
        for kind in ("ArrayChunk", "Message", "ConfigRecord", "os.system", "", "Arr\xffay", "Array" * 1000):
            made[f"a root that is a {kind[:12]!r}"] = exchanged(upload, upload.tree.object_id, framed(kind, b"{}"))
        root = upload.objects[upload.tree.object_id]
        made["a root that is its own child"] = exchanged(
            upload, upload.tree.object_id, root.replace(b"Message ", b"Message " + b"0" * 64 + b",")
        )
        made["a head of a million children"] = exchanged(
            upload, upload.tree.object_id, framed("Message", b"", ("00",) * 1_000_000)
        )
    return {name: SEPARATOR.join(_written(answer)) for name, answer in made.items()}


def _contents() -> Iterator[tuple[str, RecordDict]]:
    yield "concept", messages.upload_content(messages.Upload(b"x", 1.0))
    yield "scores", messages.identity_content(SCORES)


def _written(answer: Answer) -> list[bytes]:
    objects = [answer.objects.get(name, b"") for name in dict.fromkeys(ids(answer.tree))] if answer.objects else []
    return [answer.message.SerializeToString(), answer.tree.SerializeToString(), *objects]


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, body: bytes) -> bytes:
    """Return a field of bytes."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def protobufs(good: bytes) -> dict[str, bytes]:
    """Requests that lie about lengths, nest without end, or repeat what comes once."""
    made = {f"a field of {n} bytes": b"\x0a" + varint(n) for n in (5, 2**31 - 1, 2**32, 2**63, 2**64 - 1)}
    made |= {f"field {n}": field(n, b"x") for n in (0, 15, 2**28, 2**29 - 1, 2**31)}
    deep = b""
    for _ in range(2000):
        deep = field(2, field(1, b"ab") + deep)
    wide = field(2, field(1, b"ab")) * 15_000
    made |= {
        "a varint without end": b"\x08" + b"\xff" * 60_000, "groups in groups": b"\x0b" * 60_000,
        "groups that end": b"\x0c" * 60_000, "fields of all numbers": b"".join(field(n, b"") for n in range(1, 9000)),
        "good and deep": good + deep, "good and wide": good + wide, "deep": deep, "wide": wide,
        "text that is not UTF-8": field(1, b"\xff\xfe"), "texts again and again": field(1, b"x") * 20_000,
        "messages in messages": field(3, field(3, field(3, deep))), "good 50 times": good * 50,
    }  # fmt: skip
    return made


def announcements(good: bytes) -> dict[str, bytes]:
    """Announcements of answers to nobody's question, of others' nodes, and of trees that grow."""
    made = protobufs(good)

    def changed(change: Callable[[Any], object]) -> bytes:
        request = fleet_pb2.PushMessagesRequest.FromString(good)
        change(request)
        return bytes(request.SerializeToString())

    def with_tree(tree: Any) -> bytes:
        return changed(lambda request: request.message_object_trees[0].CopyFrom(tree))

    deep = message_pb2.ObjectTree(object_id="ab")
    for _ in range(60):
        deep = message_pb2.ObjectTree(object_id="cd", children=[deep])
    twins = message_pb2.ObjectTree(object_id="ab")
    for _ in range(14):
        twins = message_pb2.ObjectTree(object_id="cd", children=[twins, twins])
    made["a deep tree"], made["a tree that doubles"] = with_tree(deep), with_tree(twins)
    made["10,000 objects"] = with_tree(message_pb2.ObjectTree(children=[message_pb2.ObjectTree()] * 10_000))
    made["an object of a long name"] = with_tree(message_pb2.ObjectTree(object_id="a" * 60_000))
    made["no tree"] = changed(lambda request: request.ClearField("message_object_trees"))
    made["no message"] = changed(lambda request: request.ClearField("messages_list"))
    for name, value in (("reply_to_message_id", "x" * 60_000), ("src_node_id", 2**64 - 1), ("message_id", "\0")):
        made[f"another {name}"] = changed(
            lambda request, name=name, value=value: setattr(request.messages_list[0].metadata, name, value)
        )
    made["contents beside its objects"] = changed(
        lambda request: request.messages_list[0].content.items.add(key="a" * 10_000)
    )
    made["runtimes"] = changed(lambda request: request.clientapp_runtime_list.extend([float("nan")] * 5000))
    return made


def calls(good: bytes) -> dict[str, bytes]:
    """Calls of every method with requests of every kind."""
    first = good.split(SEPARATOR)[-1]
    return {
        f"{method}: {name}": method.encode() + SEPARATOR + body
        for method in ("Enrol", "Describe", "Fetch", "Trust")
        for name, body in (protobufs(first) | _names()).items()
    }


def _names() -> dict[str, bytes]:
    texts = (
        "../round-001",
        "round-001/../..",
        "a\0b",
        "\u202e",
        "x" * 60_000,
        "latest-candidate",
        "round-" + "9" * 5000,
    )
    named = {f"a model called {text[:16]!r}": field(1, text.encode()) for text in texts}
    named |= {f"a file called {text[:16]!r}": field(1, b"round-001") + field(2, text.encode()) for text in texts}
    far = field(1, b"round-001") + field(2, b"manifest.json") + b"\x18" + varint(2**64 - 1)
    return named | {"an offset of 2**64 - 1": far}


def headers(_good: bytes) -> dict[str, bytes]:
    """Keys, times and signatures that are not."""
    values = (b"", b"=", b"AAAA", b"\xff", b"A" * 4096, b"A" * 5000, b"9999-12-31T23:59:59.999999-23:59", b"NaN")
    values += (b"2026-01-01", b"0001-01-01T00:00:00+23:59", b"-----BEGIN PUBLIC KEY-----", b"a b", "é".encode())
    good = _good.split(SEPARATOR)
    return {
        f"{value[:12]!r} at {place}": SEPARATOR.join([*good[:place], value, *good[place + 1 :]])
        for value in values
        for place in range(3)
    }
