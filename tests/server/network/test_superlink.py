"""The embedded SuperLink: its nodes, its runs, the addresses that it listens on, its silence."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mos_common.errors import NetworkError
from mos_server.network.runtime import TOKEN
from mos_server.network.superlink import bind_port, listening_address
from strangers import Node, Running, request, status_of


@pytest.fixture(scope="module")
def alice(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("alice"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, alice: Node) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("federation") / "state", {alice.digest})
    yield running
    running.stop()


def test_a_key_registered_twice_is_one_node(running: Running, alice: Node):
    for _ in range(2):
        running.superlink.register(alice.pem, "alice")
    link = running.superlink.link_state()
    assert [node.name for node in link.get_node_info()] == ["alice"]
    running.superlink.unregister(alice.pem)
    assert link.get_node_id_by_public_key(alice.pem) is None


def test_each_run_has_a_token_of_its_own(running: Running):
    first, second = running.superlink.start_run(), running.superlink.start_run()
    assert first.run_id != second.run_id
    assert first.token != second.token
    assert first.address == second.address == running.superlink.private_address


@pytest.mark.parametrize("call", ["list-runs", "start-run", "register-node", "unregister-node"])
def test_flowers_control_api_is_closed_to_a_rounds_own_process(running: Running, call: str):
    token = running.superlink.start_run().token
    headers = [("host", "127.0.0.1"), ("content-type", "application/protobuf"), (TOKEN.decode(), token)]
    with running.connect(running.private_port) as connection:
        connection.sendall(request(f"/v1/control/{call}", headers))
        assert status_of(connection) == 404


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NetworkError, match=f"port {port} of 127.0.0.1 cannot be opened .*ss -ltnp"):
            bind_port("127.0.0.1", port)


def test_a_port_of_zero_is_any_that_is_free():
    with bind_port("127.0.0.1", 0) as one, bind_port("127.0.0.1", 0) as other:
        assert one.getsockname()[1] != other.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.7", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "127.0.0.1"),
        ("fuse.example.org", "0.0.0.0"),
        ("2001:db8::1", "::"),
    ],
)
def test_a_loopback_host_is_for_this_machine_alone(host: str, address: str):
    assert listening_address(host) == address


def test_flowers_log_is_ours_and_only_its_warnings(running: Running, caplog: pytest.LogCaptureFixture):
    flower = logging.getLogger("flwr")
    flower.info("POST /v1/fleet/pull-messages")
    flower.warning("the database is locked")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert [record.getMessage() for record in caplog.records] == ["the database is locked"]
    assert flower.handlers == []


def test_flower_is_silenced_before_it_is_imported(tmp_path: Path):
    """Flower reads the variable once, when it is imported: nothing may import it earlier."""
    program = f"""
from pathlib import Path
from mos_server.serve import SuperLink
from mos_server.state.folder import ServerConfig, create_state
state = create_state(Path({str(tmp_path / "state")!r}), ServerConfig(base="tiny", base_fingerprint="ab" * 32))
SuperLink(state, admitted=lambda key: True, saw=lambda key: None, unstored=print).close()
from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED
print(FLWR_TELEMETRY_ENABLED, (state.flower / "superlink.db").is_file())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout.split(), done.stderr) == (["0", "True"], "")
