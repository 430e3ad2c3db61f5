"""What comes over the network: participants' answers, the gate's protobuf, and calls of `mos.v1`.

Answers go the way of a round: Flower's replies are fetched and decoded object by object, and what
they hold is read. The gate's inputs are what Flower would get next.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import grpc
from flwr.app import RecordDict
from flwr.app.message import Message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2, node_pb2
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from end_to_end.fleet import Answer, honest_answer
from fuzz.reader import SEPARATOR, Reader, fitting_concept, miniature, parts
from mos_common import messages, mos_pb2
from mos_common.concept_file import concept_to_bytes
from mos_common.errors import ConceptError, RequestError, TrustError
from mos_common.identity_scores import Identity
from mos_common.node_key import create_node_key, key_digest, prove, public_pem, sign_call
from mos_common.release import release_metadata
from mos_common.round_requests import EvaluateRequest, TrainRequest
from mos_server.admission import admit
from mos_server.network.calls import CallLimits, Calls, Method
from mos_server.network.fleet import KEY, SIGNATURE, TIME, FleetPort, group_of_question
from mos_server.network.gate import RefusedError
from mos_server.network.service import MosService
from mos_server.round.exchange import Lost, NoScores, Question, Unusable
from mos_server.round.flower_nodes import FlowerNodes
from mos_server.state.folder import ServerConfig, create_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED, RoundSettings
from reference.flower_grid import MemoryGrid, ids

NODE = 8
SCORES = Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)
Request = TrainRequest | EvaluateRequest


def concept_answer(_folder: Path) -> Reader:
    """A participant's answer to the question for its concept."""
    content = messages.upload_content(messages.Upload(b"a concept", 1.0))
    return _answers(TrainRequest("round-001", "ab" * 32), content)


def scores_answer(_folder: Path) -> Reader:
    """A participant's answer to the question how well its concept survived."""
    request = EvaluateRequest("round-001", "ab" * 32, "round-001-candidate", "cd" * 32)
    return _answers(request, messages.identity_content(SCORES))


def _answers(request: Request, content: RecordDict) -> Reader:
    """An answer is its message without content, its tree, and its objects; all may lie."""
    with within_a_run():
        question = message_to_proto(question_for(request))
        question.metadata.message_id = "message-0"
        good = honest_answer(question, content)
    objects = [good.objects[name] for name in dict.fromkeys(ids(good.tree))]
    seed = SEPARATOR.join([good.message.SerializeToString(), good.tree.SerializeToString(), *objects])

    def read(file: Path) -> object:
        message, tree, *contents = parts(file.read_bytes(), 2)
        came = message_pb2.ObjectTree.FromString(tree)
        objects = dict(zip(dict.fromkeys(ids(came)), contents, strict=False))
        answer = Answer(type(good.message).FromString(message), came, objects)
        grid = MemoryGrid({NODE: (b"", "online", lambda _: lambda _question: answer)})
        with within_a_run():
            nodes = FlowerNodes(grid)
            asked = nodes.ask(Question(NODE, SimpleNamespace(name="mallory"), request, 60.0))
            value = nodes.answer(asked)
        if value is None or isinstance(value, Unusable | Lost | NoScores):
            raise ConceptError(str(value))
        return value

    return Reader("answer", (seed,), read, (ConceptError, DecodeError))


def question_for(request: Request) -> Message:
    """Return the question of a round."""
    if isinstance(request, TrainRequest):
        return Message(messages.train_content(request), NODE, "train")
    return Message(messages.evaluate_content(request), NODE, "evaluate")


@contextmanager
def within_a_run() -> Any:
    """Flower makes messages only within a run of its own."""
    with patch.multiple(TaskIdentity, _run_id=1, _task_id=1, _node_id=1):
        yield


def admission(folder: Path) -> Reader:
    """A concept file as the server admits it, to its base."""
    base = miniature(folder)
    seed = concept_to_bytes(fitting_concept(base))
    return Reader("cat.safetensors", (seed,), lambda file: admit(file.read_bytes(), base))


def round_request(_folder: Path) -> Reader:
    """The server's questions, as a participant's ClientApp reads them, after Flower's decoding."""
    from mos_server.round.replies import Fetched, decode

    requests = (
        TrainRequest("round-001", "ab" * 32),
        EvaluateRequest("round-001", "ab" * 32, "round-001-candidate", "cd" * 32),
    )
    with within_a_run():
        question = message_to_proto(question_for(requests[0]))
        contents = (messages.train_content(requests[0]), messages.evaluate_content(requests[1]))
        good = [honest_answer(question, content) for content in contents]
        names = [ids(each.tree) for each in good]
    seeds = tuple(
        SEPARATOR.join([str(number).encode(), *(each.objects[name] for name in names[number])])
        for number, each in enumerate(good)
    )

    def read(file: Path) -> object:
        which, *contents = parts(file.read_bytes(), 2)
        number = int(which == b"1")
        by_id = dict(zip(names[number], contents, strict=False))
        try:
            content = decode(Fetched(names[number][0], by_id)).content
        except Exception as error:  # Flower's own decoding, in its SuperNode
            raise TrustError(str(error)) from error
        return messages.read_train(content) if number == 0 else messages.read_evaluate(content)

    return Reader("request", seeds, read)


class _Link:
    """Flower's record of one node, and of one question that is open for it."""

    def get_node_id_by_public_key(self, _key: bytes) -> int:
        return NODE

    def get_valid_message_ins(self, message_id: str) -> Mapping[str, Any] | None:
        if message_id != "message-0":
            return None
        return {"dst_node_id": NODE, "group_id": group_of_question(None)}


HEADERS = {KEY: base64.b64encode(b"a key")}


def pushed_answer(_folder: Path) -> Reader:
    """What a node announces: a message and its tree of objects, in protobuf."""
    seed = _announced().SerializeToString()

    def read(file: Path) -> None:
        port = FleetPort(lambda _key: True, _Link)
        port.inspect("/v1/fleet/push-messages", HEADERS, file.read_bytes())

    return Reader("push-messages", (seed,), read, RefusedError)


def pushed_object(_folder: Path) -> Reader:
    """One object of an answer that was announced, in protobuf."""
    announced = _announced()
    request = message_pb2.PushObjectRequest(
        node=node_pb2.Node(node_id=NODE),
        run_id=1,
        object_id=announced.message_object_trees[0].object_id,
        object_content=b"RecordDict  2\0{}",
    )

    def read(file: Path) -> None:
        port = FleetPort(lambda _key: True, _Link)
        port.inspect("/v1/fleet/push-messages", HEADERS, announced.SerializeToString())
        port.inspect("/v1/fleet/push-object", HEADERS, file.read_bytes())

    return Reader("push-object", (request.SerializeToString(),), read, RefusedError)


def _announced() -> fleet_pb2.PushMessagesRequest:
    with within_a_run():
        question = message_to_proto(question_for(TrainRequest("round-001", "ab" * 32)))
        question.metadata.message_id = "message-0"
        answer = honest_answer(question, messages.identity_content(SCORES))
    return fleet_pb2.PushMessagesRequest(
        node=node_pb2.Node(node_id=NODE),
        messages_list=[answer.message],
        message_object_trees=[answer.tree],
        clientapp_runtime_list=[0.1],
    )


def fleet_headers(folder: Path) -> Reader:
    """The key, the time and the signature in the headers of a Fleet call."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

    key = create_node_key(folder / "fleet_key")
    time = dt.datetime.now(dt.UTC).isoformat()
    public, signature = public_key_to_bytes(key.public_key()), sign_message(key, time.encode())
    seed = SEPARATOR.join([base64.b64encode(public), time.encode(), base64.b64encode(signature)])
    port = FleetPort(lambda _key: True, _Link)

    def read(file: Path) -> str:
        return port.identify(dict(zip((KEY, TIME, SIGNATURE), parts(file.read_bytes(), 3), strict=False)))

    return Reader("headers", (seed,), read, TrustError)


class _Context:
    """One call of `mos.v1`: what its other side sent, and what it is told."""

    def __init__(self, sent: bytes, metadata: Any) -> None:
        self._sent, self._metadata = sent, metadata
        self.written: list[bytes] = []

    async def read(self) -> bytes:
        return self._sent

    async def write(self, data: bytes) -> None:
        self.written.append(data)

    async def send_initial_metadata(self, _metadata: Any) -> None: ...

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def abort(self, code: grpc.StatusCode, sentence: str, _metadata: Any = ()) -> None:
        if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            raise AssertionError(f"{code.name}: {sentence}")
        raise RequestError(f"{code.name}: {sentence}")


def mos_call(folder: Path) -> Reader:
    """A call of `mos.v1`: its method, and its request in protobuf, signed where it must be."""
    state = create_state(folder / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
    journal = Journal(state.database)
    key = create_node_key(folder / "alice_key")
    pem = public_pem(key)
    token, _ = journal.participants.invite("alice", valid_s=3600)
    journal.participants.enrol(token, key_digest(pem), pem)
    round_ = journal.rounds.ask(RoundSettings())
    model = state.artefacts.model(round_.id)
    model.mkdir(parents=True)
    (model / "manifest.json").write_text('{"round": "round-001", "concepts": [], "files": {}}')
    (model / "manifest.sig").write_bytes(b"signature")
    journal.rounds.advance(round_.id, PUBLISHED)
    service = MosService(state, journal, lambda _pem, _name: None)
    door = SimpleNamespace(call=lambda _name, _key: nullcontext())
    calls = Calls(
        service.methods, door, admitted=service.is_admitted, runs=service.runs, limits=CallLimits(calls_per_key=9)
    )
    bob, (invited, _) = create_node_key(folder / "bob_key"), journal.participants.invite("bob", valid_s=3600)
    requests = {
        "Enrol": mos_pb2.EnrolRequest(token=invited, public_key=public_pem(bob), proof=prove(bob, invited)),
        "Describe": mos_pb2.DescribeRequest(model="round-001"),
        "Fetch": mos_pb2.FetchRequest(model="round-001", file="manifest.json", offset=3),
        "Trust": mos_pb2.TrustRequest(),
    }
    seeds = tuple(SEPARATOR.join([name.encode(), each.SerializeToString()]) for name, each in requests.items())

    def read(file: Path) -> object:
        method, sent = parts(file.read_bytes(), 2)[:2]
        name = method.decode("ascii", "replace")
        if name not in requests:
            raise RequestError("no such method")  # gRPC says it
        context = _Context(sent, _signed(key, name, service.methods[name], sent))
        asyncio.run(calls._receive(name, context))
        return context.written

    return Reader("call", seeds, read)


def _signed(key: Any, name: str, method: Method, sent: bytes) -> Any:
    """Return the metadata of a call by one who signs what it sends, whatever that is."""
    try:
        return (*sign_call(key, name, method.request.FromString(sent)), *release_metadata())
    except DecodeError:
        return release_metadata()


MAKERS: Mapping[str, Callable[[Path], Reader]] = {
    "concept_answer": concept_answer,
    "scores_answer": scores_answer,
    "admission": admission,
    "round_request": round_request,
    "pushed_answer": pushed_answer,
    "pushed_object": pushed_object,
    "fleet_headers": fleet_headers,
    "mos_call": mos_call,
}
