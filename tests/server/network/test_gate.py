"""The gate, over real TLS in front of real Flower: only judged calls of proven keys get through."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as FlowerNode
from flwr.supercore.date import now
from sqlalchemy.exc import OperationalError

from mos_server.network.fleet import FleetPort
from mos_server.network.gate import Quota
from strangers import Node, Running, ended, request, status_of

MIB = 1 << 20


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("alice"))


@pytest.fixture(scope="module")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("mallory"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, alice: Node) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("federation") / "state", {alice.digest})
    running.superlink.register(alice.pem, "alice")
    yield running
    running.stop()


def ask(running: Running, sent: bytes) -> int | None:
    with running.connect() as connection:
        connection.sendall(sent)
        return status_of(connection)


def heartbeat(running: Running, node: Node) -> bytes:
    """A call that Flower answers with 200, again and again."""
    number = running.superlink.link_state().get_node_id_by_public_key(node.pem)
    body = SendNodeHeartbeatRequest(node=FlowerNode(node_id=number), heartbeat_interval=30)
    return request("send-node-heartbeat", node.headers(), body.SerializeToString())


def test_an_honest_call_reaches_flower_and_is_seen(running: Running, alice: Node):
    running.seen.clear()
    assert ask(running, heartbeat(running, alice)) == 200
    assert running.seen == [alice.digest]


def test_a_connection_serves_one_call_after_another(running: Running, alice: Node):
    with running.connect() as connection:
        for _ in range(3):
            connection.sendall(request("pull-messages", alice.headers(), PullMessagesRequest().SerializeToString()))
            assert status_of(connection) == 401  # of Flower: node 0 is not alice's
        connection.sendall(heartbeat(running, alice))
        assert status_of(connection) == 200


def test_what_the_disk_does_not_take_is_refused_for_now_and_reported(
    running: Running, alice: Node, monkeypatch: pytest.MonkeyPatch
):
    """A large body waits on disk before Flower gets it."""
    running.unstored.clear()
    gone = running.state.flower / "gone"
    monkeypatch.setattr(running.superlink._gate, "_spool", gone)
    assert ask(running, request("push-object", alice.headers(), bytes(MIB))) == 503
    (why,) = running.unstored
    assert why.startswith(f"{gone}: cannot be written")


def test_what_flower_s_database_does_not_take_is_refused_for_now_and_reported(
    running: Running, alice: Node, monkeypatch: pytest.MonkeyPatch
):
    async def full(*_asgi: object) -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    running.unstored.clear()
    with monkeypatch.context() as fault:
        fault.setattr(running.superlink._gate, "_application", full)
        assert ask(running, heartbeat(running, alice)) == 503
    (why,) = running.unstored
    assert "database or disk is full" in why
    assert ask(running, heartbeat(running, alice)) == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?x=1",
        "//v1/fleet/pull-messages",
        "/docs",
        "/openapi.json",
        "/health",
    ],
)
def test_there_is_nothing_but_the_fleet_api(running: Running, alice: Node, path: str):
    assert ask(running, request(path, alice.headers())) == 404


def test_there_is_nothing_but_post(running: Running, alice: Node):
    assert ask(running, request("pull-messages", alice.headers()).replace(b"POST", b"GET")) == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"flwr_public_key": ""},
        {"flwr_signature": ""},
        {"flwr_signature": "cw=="},
        {"flwr_public_key": "not base64!"},
        {"flwr_public_key": "bm90IGEga2V5"},
        {"flwr_public_key": "A" * 5000},
        {"flwr_timestamp": (now() - timedelta(minutes=6)).isoformat()},
        {"flwr_timestamp": (now() + timedelta(hours=1)).isoformat()},
        {"flwr_timestamp": "yesterday"},
        {"flwr_timestamp": "2026-01-01"},
    ],
)
def test_nothing_takes_effect_without_a_signature(running: Running, alice: Node, changes: dict[str, str]):
    running.seen.clear()
    assert ask(running, request("send-node-heartbeat", alice.headers(**changes))) == 401
    assert running.seen == []


def test_a_key_that_is_only_claimed_costs_its_owner_nothing(running: Running, alice: Node):
    """Attack 4: bodies under somebody's public key and no signature used up their quota."""
    forged = alice.headers(flwr_signature="cw==")
    for _ in range(110):
        assert ask(running, request("push-object", forged, length=5 * MIB)) == 401
    assert ask(running, heartbeat(running, alice)) == 200


def test_a_key_that_is_not_admitted_is_refused_unread(running: Running, mallory: Node):
    assert ask(running, request("push-object", mallory.headers(), length=5 * MIB)) == 401


def test_a_time_signed_by_another_key_is_refused(running: Running, alice: Node, mallory: Node):
    stolen = dict(mallory.headers())["flwr-signature"]
    assert ask(running, request("pull-messages", alice.headers(flwr_signature=stolen))) == 401


@pytest.mark.parametrize(
    "second",
    [
        ("flwr-public-key", "x"),
        ("FLWR-Public-Key", "x"),
        ("flwr-timestamp", "x"),
        ("Flwr-Signature", "x"),
        ("host", "elsewhere"),
        ("content-type", "application/protobuf"),
        ("content-length", "0"),
        ("Content-Length", "1"),
        ("transfer-encoding", "chunked"),
        ("user-agent", "one"),
    ],
)
def test_a_header_that_comes_twice_is_refused(running: Running, alice: Node, second: tuple[str, str]):
    """Attack 8: the gate took the last key, Flower the first."""
    headers = [*alice.headers(), ("user-agent", "two"), second]
    assert ask(running, request("send-node-heartbeat", headers)) in (400, 411)


@pytest.mark.parametrize(
    "changed",
    [
        lambda sent: sent.replace(b"HTTP/1.1", b"HTTP/1.0"),
        lambda sent: sent.replace(b"HTTP/1.1", b"HTTP/9.9"),
        lambda sent: sent.replace(b"host: 127.0.0.1\r\n", b""),
        lambda sent: sent.replace(b"content-length: 0", b"content-length: +0"),
        lambda sent: sent.replace(b"content-length: 0", b"content-length: 0, 0"),
        lambda sent: sent.replace(b"content-length: 0", b"content-length: " + b"9" * 40),
        lambda sent: sent.replace(b"\r\nhost", b"\r\nx: " + b"y" * (17 << 10) + b"\r\nhost"),
        lambda sent: sent.replace(b"\r\nhost", b"\r\n" + b"".join(b"x%d: y\r\n" % i for i in range(200)) + b"host"),
        lambda sent: sent + sent,
        lambda sent: b"\x16\x03\x01 no HTTP at all\r\n\r\n",
    ],
)
def test_what_is_not_one_plain_request_is_refused(running: Running, alice: Node, changed):
    sent = changed(request("send-node-heartbeat", alice.headers()))
    with running.connect() as connection:
        connection.sendall(sent)
        assert status_of(connection) in (400, 413)
        assert ended(connection, 5)


def test_a_body_in_chunks_is_refused(running: Running, alice: Node):
    headers = [*alice.headers(), ("transfer-encoding", "chunked")]
    assert ask(running, request("push-object", headers, length=-1)) == 411
    assert ask(running, request("push-object", alice.headers(), length=-1)) == 411


def test_a_body_that_says_it_is_too_large_gets_413(running: Running, alice: Node):
    """Attack 5: through the real application, also if the sender goes on sending."""
    assert ask(running, request("push-object", alice.headers(), length=6 * MIB + 1)) == 413
    assert ask(running, request("push-object", alice.headers(), b"x" * (7 * MIB))) == 413
    assert ask(running, request("pull-messages", alice.headers(), b"x" * 5000)) == 413


def test_a_body_of_the_largest_size_is_read_and_judged(running: Running, alice: Node):
    assert ask(running, request("push-object", alice.headers(), b"x" * (6 * MIB))) == 403  # of no answer
    assert FleetPort.calls["/v1/fleet/push-object"] == 6 * MIB


def test_a_request_may_come_byte_by_byte(running: Running, alice: Node):
    with running.connect() as connection:
        for byte in heartbeat(running, alice):
            connection.sendall(bytes([byte]))
        assert status_of(connection) == 200


def test_a_sender_may_wait_for_the_word_to_go_on(running: Running, alice: Node):
    head, _, body = heartbeat(running, alice).partition(b"\r\n\r\n")
    with running.connect() as connection:
        connection.sendall(head + b"\r\nexpect: 100-continue\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert status_of(connection) == 200


def test_a_key_barred_while_its_body_comes_is_cut_off(running: Running, mallory: Node):
    running.admitted.add(mallory.digest)
    running.superlink.register(mallory.pem, "mallory")
    with running.connect() as sending, running.connect() as idle:
        idle.sendall(heartbeat(running, mallory))
        assert status_of(idle) == 200
        sending.sendall(request("push-object", mallory.headers(), length=5 * MIB))
        sending.sendall(b"x" * MIB)
        running.admitted.discard(mallory.digest)
        assert ended(sending, 5)
        assert ended(idle, 5)
    link = running.superlink.link_state()
    assert link.get_node_id_by_public_key(mallory.pem) is None
    assert ask(running, request("pull-messages", mallory.headers())) == 401


def test_a_slow_sender_is_told_that_it_is_still_heard(running: Running, alice: Node, monkeypatch: pytest.MonkeyPatch):
    """Flower's client gives up after 30 s in which it reads nothing."""
    monkeypatch.setattr("mos_server.network.gate._INTERIM_EVERY_S", 0.2)
    sent = heartbeat(running, alice)
    with running.connect() as connection:
        connection.sendall(sent[:-1])
        assert connection.recv(4096).startswith(b"HTTP/1.1 102 ")
        connection.sendall(sent[-1:])
        received = b""
        while b"HTTP/1.1 200 " not in received:
            received += connection.recv(4096)


def test_a_body_may_come_for_longer_than_its_signature_is_fresh(
    running: Running, alice: Node, monkeypatch: pytest.MonkeyPatch
):
    """On a slow line an object takes longer than the five minutes within which Flower wants it."""
    sent = heartbeat(running, alice)
    with running.connect() as connection:
        connection.sendall(sent[:-1])
        time.sleep(1)
        monkeypatch.setattr("flwr.superlink.routers.fleet.node_auth.now", lambda: now() + timedelta(minutes=50))
        connection.sendall(sent[-1:])
        assert status_of(connection) == 200


def test_the_quota_is_of_an_hour():
    clock = [0.0]
    quota = Quota(100, lambda: clock[0])
    quota.count("key", 101)
    assert quota.spent("key")
    assert not quota.spent("another")
    clock[0] = 3601.0
    assert not quota.spent("key")


def test_slow_bodies_cost_no_memory_and_hold_nobody_up(running: Running, alice: Node):
    """Six half-sent bodies wait on disk while the seventh connection is answered."""
    halves = [running.connect() for _ in range(6)]
    try:
        for each in halves:
            each.sendall(request("push-object", alice.headers(), length=5 * MIB) + b"x" * (4 * MIB))
        began = time.monotonic()
        assert ask(running, heartbeat(running, alice)) == 200
        assert time.monotonic() - began < 10
    finally:
        for each in halves:
            each.close()


def test_calls_of_many_threads_are_all_answered(running: Running, alice: Node):
    answers: list[int | None] = []

    def call() -> None:
        answers.append(ask(running, heartbeat(running, alice)))

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == [200] * 6


@pytest.mark.parametrize("call", sorted(FleetPort.calls))
def test_a_body_that_cannot_be_decoded_costs_its_sender_the_call(
    running: Running, alice: Node, call: str, caplog: pytest.LogCaptureFixture
):
    """Flower decodes most bodies itself: its error is an answer, and no traceback in our log."""
    assert ask(running, request(call, alice.headers(), b"\x0a\xff\xff\xff\xff\x0f" + b"\x0b" * 500)) in (400, 401)
    assert not [record for record in caplog.records if record.exc_info]
    assert ask(running, heartbeat(running, alice)) == 200


def test_the_spool_is_empty_afterwards(running: Running):
    names = {path.name for path in Path(running.state.flower).iterdir()}
    assert {name for name in names if not name.startswith("superlink.db")} <= {"apps", "source"}
