"""Connections, handshakes, records and frames by the thousand: others are answered meanwhile.

The flood is a process of its own (`flooding.py`), from the address of those who are honest.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import psutil
import pytest

import flooding
from end_to_end.federation import Federation, processes
from mos_common import mos_pb2, mos_pb2_grpc
from mos_common.node_key import sign_call
from mos_common.release import release_metadata
from mos_server.state.folder import State
from mos_server.state.journal import Journal
from strangers import Node, request, status_of, tls

WITHIN_S = 60.0  # one machine does both sides and other work; alone it is a fraction of a second


class Served:
    """A running server, an honest participant's key, and an attacker's."""

    server: psutil.Process

    def __init__(self, state: State, fleet: int, mos: int, out: Path) -> None:
        self.state = state
        self.ports = {"fleet": fleet, "mos": mos}
        self.alice, self.mallory = Node(out / "alice"), Node(out / "mallory")
        with closing(Journal(state.database)) as journal:
            for name, key in (("alice", self.alice), ("mallory", self.mallory)):
                token, _ = journal.participants.invite(name, valid_s=3600)
                journal.participants.enrol(token, key.digest, key.pem)

    def calls_fleet(self) -> int | None:
        """Return the status of a signed call, on a new connection: its body is no answer."""
        with tls(self.state.pki.authority, self.ports["fleet"]) as line:
            line.sendall(request("push-messages", self.alice.headers(), b"\xff"))
            return status_of(line)

    def calls_mos(self) -> grpc.StatusCode:
        """Return the status of a signed call, on a new connection: no model is published yet."""
        credentials = grpc.ssl_channel_credentials(self.state.pki.authority.read_bytes())
        asked = mos_pb2.DescribeRequest(model="latest")
        metadata = (*sign_call(self.alice.key, "Describe", asked), *release_metadata())
        address, alone = f"127.0.0.1:{self.ports['mos']}", [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(address, credentials, options=alone) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                mos_pb2_grpc.MosStub(channel).Describe(asked, metadata=metadata, timeout=WITHIN_S, wait_for_ready=True)
            return caught.value.code()

    def answers(self) -> float:
        """Call both ports; return the seconds that the slower one took."""
        took = []
        for call, expected in ((self.calls_fleet, 400), (self.calls_mos, grpc.StatusCode.NOT_FOUND)):
            began = time.monotonic()
            assert call() == expected
            took.append(time.monotonic() - began)
        return max(took)

    @contextmanager
    def flooded(self, kind: str, port: str, connections: int, *key: str) -> Iterator[None]:
        words = [sys.executable, flooding.__file__, kind, str(self.ports[port]), str(connections), *key]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as attacker:
            try:
                assert attacker.stdout
                print(attacker.stdout.readline().strip())
                yield
                print(attacker.stdout.readline().strip())
                assert attacker.poll() is None
            finally:
                attacker.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    out = tmp_path_factory.mktemp("floods")
    with processes() as running:
        federation = Federation(out, running)
        federation.create()
        config = federation.state.config
        served = Served(federation.state, config.fleet_port, config.mos_port, out)
        federation.serve()
        served.server = psutil.Process(running.running["server"].pid)
        until = time.monotonic() + 120
        while True:
            try:
                served.answers()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.5)
        yield served


@pytest.mark.parametrize(
    ("kind", "port", "connections"),
    [
        ("connect", "fleet", 8),
        ("connect", "mos", 8),
        ("greet", "fleet", 8),
        ("greet", "mos", 8),
        ("records", "fleet", 16),
        ("records", "mos", 16),
        ("reset", "mos", 4),
        ("ping", "mos", 4),
        ("settings", "mos", 4),
    ],
)
def test_a_stranger_floods_and_the_others_are_answered(served: Served, kind: str, port: str, connections: int):
    before = served.server.memory_info().rss
    with served.flooded(kind, port, connections):
        took = [served.answers() for _ in range(3)]
    print(f"{kind} at {port}: {max(took):.2f} s")
    assert max(took) < WITHIN_S
    assert served.server.memory_info().rss - before < 100 << 20


@pytest.mark.parametrize("kind", ["reset", "ping", "settings"])
def test_a_participant_floods_frames_and_the_others_are_answered(served: Served, kind: str):
    before = served.server.memory_info().rss
    with served.flooded(kind, "mos", 4, str(served.mallory.folder / "node_key")):
        took = [served.answers() for _ in range(3)]
    print(f"{kind} with a key: {max(took):.2f} s")
    assert max(took) < WITHIN_S
    assert served.server.memory_info().rss - before < 100 << 20
