"""What a participant may send is bounded before Flower stores it, through both real ports."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.retry.http_retry import RunNotRunningException
from flwr.superlink.grid import HttpGrid

from flower_round import Participant, ask, grid_of_a_round, online
from mos_common.identity_scores import Identity
from mos_common.messages import Upload, identity_content, read_upload, upload_content
from mos_common.round_requests import CONCEPT_BYTES_AT_MOST, OBJECTS_AT_MOST, EvaluateRequest, TrainRequest
from mos_server.network import fleet
from mos_server.round.exchange import Question
from mos_server.round.flower_nodes import FlowerNodes
from mos_server.state.records import Participant as Person
from strangers import Node, Running, request, status_of

MIB = 1 << 20


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("alice"))


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("bob"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, alice: Node, bob: Node) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("federation") / "state", {alice.digest, bob.digest})
    running.superlink.register(alice.pem, "alice")
    running.superlink.register(bob.pem, "bob")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def grid(running: Running) -> Iterator[HttpGrid]:
    with grid_of_a_round(running) as grid:
        yield grid


@pytest.fixture(scope="module")
def participant(running: Running, alice: Node) -> Iterator[Participant]:
    with online(running.superlink.public_port, running.state.pki.authority, alice) as participant:
        yield participant


def refused(call, *arguments) -> bool:
    """Return whether a call is refused with 403, which a SuperNode takes for a run that is over."""
    with pytest.raises(RunNotRunningException):
        call(*arguments)
    return True


def person(node: int) -> Person:
    return Person(f"{node:x}", "alice", b"", 0.0, None, None)


def stored_bytes(running: Running) -> int:
    with closing(sqlite3.connect(running.state.flower / "superlink.db")) as db:
        return int(db.execute("SELECT coalesce(sum(length(content)), 0) FROM objects").fetchone()[0])


@pytest.mark.parametrize("size", [12 * MIB, pytest.param(CONCEPT_BYTES_AT_MOST, marks=pytest.mark.slow)])
def test_the_largest_concept_arrives_whole(grid: HttpGrid, participant: Participant, size: int):
    number = ask(grid, participant.node)
    data = os.urandom(size)
    participant.reply(participant.asked(), upload_content(Upload(data, 1.0)))
    (answer,) = grid.pull_messages([number])
    assert read_upload(answer.content).data == data


def statuses_of_chunks(participant: Participant, question: Message, sizes: list[int]) -> list[int]:
    """Answer with chunks of these sizes; return what the gate says to each object."""
    arrays = {
        str(n): Array(dtype="uint8", shape=(size,), stype="numpy.ndarray", data=os.urandom(size))
        for n, size in enumerate(sizes)
    }
    content = RecordDict({"concept": ArrayRecord(arrays)})
    objects, session = participant.announce(Message(content, reply_to=question))
    statuses = []
    for name, data in objects.items():
        try:
            participant.push(question.metadata.run_id, session, name, data)
            statuses.append(200)
        except httpx.HTTPStatusError as error:
            statuses.append(error.response.status_code)
    return statuses


@pytest.mark.parametrize("group", ["", "x", "99999999999999", "-1"])
def test_no_answer_is_larger_than_the_largest_concept(
    grid: HttpGrid, participant: Participant, monkeypatch: pytest.MonkeyPatch, group: str
):
    """Attack 6: an answer of 400 MB was stored whole. Here the bound is smaller, for speed."""
    assert CONCEPT_BYTES_AT_MOST < fleet.ANSWER_BYTES_AT_MOST <= CONCEPT_BYTES_AT_MOST + MIB
    monkeypatch.setattr(fleet, "ANSWER_BYTES_AT_MOST", MIB)
    ask(grid, participant.node, group=group)
    assert set(statuses_of_chunks(participant, participant.asked(), [MIB // 2] * 4)) == {200, 413}


def test_an_answer_may_have_what_its_question_asks_for_and_no_more(
    running: Running, grid: HttpGrid, participant: Participant
):
    """The base of a federation decides: the process of a round writes it into the question."""
    base_of_small_concepts = FlowerNodes(grid, concept_bytes=3 * MIB)
    alice = person(participant.node)
    request = TrainRequest("round-001", "ab" * 32)
    assert base_of_small_concepts.ask(Question(participant.node, alice, request, 60.0))
    before = stored_bytes(running)
    assert set(statuses_of_chunks(participant, participant.asked(), [MIB] * 8)) == {200, 413}
    assert 3 * MIB <= stored_bytes(running) - before <= 4 * MIB
    number = base_of_small_concepts.ask(Question(participant.node, alice, request, 60.0))
    data = os.urandom(3 * MIB)
    participant.reply(participant.asked(), upload_content(Upload(data, 1.0)))
    assert base_of_small_concepts.answer(number or "") == data


def test_scores_are_smaller_than_any_concept(running: Running, grid: HttpGrid, participant: Participant):
    nodes = FlowerNodes(grid)
    request = EvaluateRequest("round-001", "ab" * 32, "round-001-candidate", "cd" * 32)
    alice = person(participant.node)
    assert nodes.ask(Question(participant.node, alice, request, 60.0))
    before = stored_bytes(running)
    assert set(statuses_of_chunks(participant, participant.asked(), [MIB] * 8)) == {200, 413}
    assert stored_bytes(running) - before <= fleet.SCORES_BYTES_AT_MOST
    number = nodes.ask(Question(participant.node, alice, request, 60.0))
    scores = Identity(0.1, 0.6, 0.5, 0.9)
    participant.reply(participant.asked(), identity_content(scores))
    assert nodes.answer(number or "") == scores


def test_an_answer_of_many_objects_is_refused(grid: HttpGrid, participant: Participant):
    ask(grid, participant.node)
    answer = Message(upload_content(Upload(b"x", 1.0)), reply_to=participant.asked())
    many = ObjectTree(object_id="ab" * 32, children=[ObjectTree(object_id=f"{n:064x}") for n in range(OBJECTS_AT_MOST)])
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        participant.announce(answer, tree=many)
    deep = ObjectTree(object_id="cd" * 32)
    for n in range(OBJECTS_AT_MOST // 2):  # protobuf itself reads no more than a hundred levels
        leaf = ObjectTree(object_id=f"{OBJECTS_AT_MOST + n:064x}")
        deep = ObjectTree(object_id=f"{n:064x}", children=[deep, leaf])
    with pytest.raises(httpx.HTTPStatusError, match="413"):
        participant.announce(answer, tree=deep)


def test_an_answer_that_nobody_asked_for_is_refused(
    running: Running, grid: HttpGrid, participant: Participant, bob: Node
):
    ask(grid, participant.node)
    question = participant.asked()
    with online(running.superlink.public_port, running.state.pki.authority, bob) as another:
        content = upload_content(Upload(b"x", 1.0))
        assert refused(another.announce, Message(content, reply_to=question))
        stale = Message(content, reply_to=question)
        stale.metadata.__dict__["_reply_to_message_id"] = "ab" * 32
        assert refused(participant.announce, stale)


def test_a_second_answer_to_a_question_is_refused_and_the_same_one_is_not(grid: HttpGrid, participant: Participant):
    ask(grid, participant.node)
    question = participant.asked()
    first = Message(upload_content(Upload(b"first", 1.0)), reply_to=question)
    participant.announce(first)
    participant.announce(first)  # its reply was lost on the way
    assert refused(participant.announce, Message(upload_content(Upload(b"second", 1.0)), reply_to=question))


def test_an_object_of_no_answer_is_refused(grid: HttpGrid, participant: Participant):
    ask(grid, participant.node)
    question = participant.asked()
    _, session = participant.announce(Message(upload_content(Upload(b"third", 1.0)), reply_to=question))
    assert refused(participant.push, question.metadata.run_id, session, "ef" * 32, b"anything")


@pytest.mark.parametrize("body", [b"", b"\xff" * 100, b"\x0a\x00"])
def test_what_is_no_answer_at_all_is_refused(running: Running, alice: Node, body: bytes):
    with running.connect() as connection:
        connection.sendall(request("push-messages", alice.headers(), body))
        assert status_of(connection) == 400


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/runtime/pull-messages", {}, 401),
        ("/v1/runtime/pull-messages", {"flwr-task-token": "guess"}, 401),
        ("/v1/runtime/push-object", {"flwr-task-token": "é"}, 401),
        ("/v1/runtime/acquire-task", {}, 404),
        ("/v1/control/start-run", {}, 404),
        ("/v1/fleet/pull-messages", {}, 404),
        ("/openapi.json", {}, 404),
        ("/docs", {}, 404),
    ],
)
def test_the_private_port_reads_nothing_of_a_stranger(running: Running, path: str, headers: dict, status: int):
    """Attack 15: it read 600 MB before it asked who sent them."""
    with running.connect(running.private_port) as connection:
        given = [("host", "127.0.0.1"), ("content-type", "application/protobuf"), *headers.items()]
        connection.sendall(request(path, given, length=600 * MIB))
        assert status_of(connection) == status


def test_the_database_gives_back_what_was_deleted(running: Running):
    database = running.state.flower / "superlink.db"
    with closing(sqlite3.connect(database, timeout=30)) as db, db:
        for table in ("object_children", "run_objects", "objects"):
            db.execute(f"DELETE FROM {table}")
    until = time.monotonic() + 30
    while (size := sum(path.stat().st_size for path in running.state.flower.glob("superlink.db*"))) > 8 * MIB:
        assert time.monotonic() < until, size
        time.sleep(0.2)
