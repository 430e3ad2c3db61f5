"""The gate, over real TLS in front of real Flower: admitted keys reach the Fleet API alone."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mos_common.errors import NetworkError
from mos_common.node_key import create_node_key, key_digest, load_node_key, public_pem
from mos_server.network.gate import FLEET_CALLS, Gate, Quota
from mos_server.network.superlink import SuperLink, bind_port, listening_address
from mos_server.state.folder import ServerConfig, State, create_state

MIB = 1 << 20


def ask(gate: Gate, path: str = "/v1/fleet/pull-messages", body: bytes = b"", pem: bytes = b"", **changes) -> int:
    """Return the status with which a gate answers one request; record whether the body was read."""
    headers = {"flwr-public-key": base64.b64encode(pem).decode(), "flwr-timestamp": "t", "flwr-signature": "s"}
    headers |= changes.pop("headers", {})
    scope = {"type": "http", "method": "POST", "path": path} | changes
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items() if value]
    answered: list[int] = []
    pieces = [body[i : i + MIB] for i in range(0, len(body), MIB)] or [b""]

    async def receive() -> dict:
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    asyncio.run(gate(scope, receive, send))
    (status,) = answered
    return status


async def reads_everything(scope: dict, receive: Callable, send: Callable) -> None:
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def is_never_reached(scope: dict, receive: Callable, send: Callable) -> None:
    pytest.fail("the gate let it through")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("key") / "node_key"
    create_node_key(path)
    return public_pem(load_node_key(path))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/pull-messages/",
        "//v1/fleet/pull-messages",
        "/docs",
        "/openapi.json",
        "/health",
        "",
    ],
)
def test_there_is_nothing_but_the_fleet_api(pem: bytes, path: str):
    assert ask(Gate(is_never_reached, admitted=lambda key: True), path, pem=pem) == 404


def test_there_is_nothing_but_post(pem: bytes):
    assert ask(Gate(is_never_reached, admitted=lambda key: True), pem=pem, method="GET") == 404


def test_an_admitted_key_passes_and_is_seen(pem: bytes):
    seen: list[str] = []
    gate = Gate(reads_everything, admitted=lambda key: key == key_digest(pem), saw=seen.append)
    assert {ask(gate, call, b"x" * MIB, pem) for call in FLEET_CALLS} == {200}
    assert set(seen) == {key_digest(pem)}


@pytest.mark.parametrize(
    "headers",
    [
        {"flwr-public-key": ""},
        {"flwr-signature": ""},
        {"flwr-timestamp": ""},
        {"flwr-public-key": "not base64!"},
        {"flwr-public-key": "bm90IGEga2V5"},
        {"flwr-public-key": "A" * 5000},
    ],
)
def test_without_a_key_the_body_is_not_read(pem: bytes, headers: dict):
    assert ask(Gate(is_never_reached, admitted=lambda key: True), pem=pem, headers=headers) == 401


def test_a_key_that_is_not_admitted_is_refused_unread(pem: bytes):
    assert ask(Gate(is_never_reached, admitted=lambda key: False), pem=pem) == 401


def test_a_body_that_says_it_is_too_large_is_refused_unread(pem: bytes):
    gate = Gate(is_never_reached, admitted=lambda key: True)
    assert ask(gate, pem=pem, headers={"content-length": str(6 * MIB + 1)}) == 413


def test_a_body_that_goes_on_is_cut(pem: bytes):
    gate = Gate(reads_everything, admitted=lambda key: True)
    assert ask(gate, body=b"x" * 6 * MIB, pem=pem) == 200
    assert ask(gate, body=b"x" * (6 * MIB + 1), pem=pem) == 413


def test_a_key_that_sends_without_end_is_stopped(pem: bytes):
    gate = Gate(reads_everything, admitted=lambda key: True, hourly_bytes=4 * MIB)
    assert [ask(gate, body=b"x" * 3 * MIB, pem=pem) for _ in range(3)] == [200, 413, 429]


def test_the_quota_is_of_an_hour():
    now = [0.0]
    quota = Quota(100, lambda: now[0])
    quota.count("key", 101)
    assert quota.spent("key")
    assert not quota.spent("another")
    now[0] = 3601.0
    assert not quota.spent("key")


class Running:
    """A SuperLink that listens, in a thread of its own."""

    def __init__(self, state: State, admitted: set[str]) -> None:
        self.superlink = SuperLink(state, admitted=admitted.__contains__, saw=lambda key: None)
        self._listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._listening.wait(30)

    async def _serve(self) -> None:
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        await self.superlink.serve(self._stop, self._listening.set)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = ServerConfig(base="tiny", base_fingerprint="ab" * 32, fleet_port=port)
    return create_state(tmp_path_factory.mktemp("federation") / "state", config)


@pytest.fixture(scope="module")
def running(state: State, pem: bytes) -> Iterator[Running]:
    running = Running(state, {key_digest(pem)})
    yield running
    running.stop()


@pytest.fixture
def client(state: State) -> Iterator[httpx.Client]:
    with httpx.Client(verify=ssl.create_default_context(cafile=str(state.pki.authority)), timeout=20) as client:
        yield client


def test_flower_behind_the_gate_answers_fleet_calls_only(running: Running, client: httpx.Client, pem: bytes):
    address = f"https://127.0.0.1:{running.superlink.public_port}"
    headers = {"flwr-public-key": base64.b64encode(pem).decode(), "flwr-timestamp": "t", "flwr-signature": "cw=="}
    headers["content-type"] = "application/protobuf"
    assert (
        client.post(f"{address}/v1/fleet/pull-messages", headers=headers).status_code == 401
    )  # Flower: a bad signature
    assert client.post(f"{address}/v1/control/list-runs", headers=headers).status_code == 404
    assert client.get(f"{address}/docs").status_code == 404


def test_flowers_control_api_is_closed_on_the_private_port_too(running: Running, client: httpx.Client):
    address = f"https://{running.superlink.private_address}"
    headers = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    assert client.post(f"{address}/v1/control/list-runs", headers=headers).status_code == 401
    assert client.post(f"{address}/v1/control/start-run", headers=headers).status_code == 401
    assert client.post(f"{address}/v1/runtime/acquire-task", headers=headers).status_code in (401, 403)


def test_a_key_registered_twice_is_one_node(running: Running, pem: bytes):
    for _ in range(2):
        running.superlink.register(pem, "alice")
    link = running.superlink.link_state()
    assert [node.name for node in link.get_node_info()] == ["alice"]
    running.superlink.unregister(pem)
    assert link.get_node_id_by_public_key(pem) is None


def test_a_run_is_started_without_any_port_and_its_token_is_ours(running: Running):
    first, second = running.superlink.start_run(), running.superlink.start_run()
    assert first.run_id != second.run_id
    assert first.token != second.token
    assert first.address == running.superlink.private_address


def test_a_port_in_use_is_named(state: State):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NetworkError, match=f"port {port} of 127.0.0.1 cannot be opened"):
            bind_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("fuse.example.org", "0.0.0.0"), ("2001:db8::1", "::")],
)
def test_a_loopback_host_is_for_this_machine_alone(host: str, address: str):
    assert listening_address(host) == address


def test_flower_is_silenced_before_it_is_imported(running: Running, state: State):

    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"
    assert Path(state.flower / "superlink.db").is_file()
