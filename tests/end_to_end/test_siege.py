"""A round while strangers and a participant hold as many connections as they can.

The attacker is a process of its own. It holds 600 connections that prove nothing (silent ones, TLS
without a request, half a request) from each of two addresses, and 90 with an admitted key that send
a byte a second or read no answer. One address is the participants' own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import besieging
from end_to_end.federation import QUICK, Federation, is_ready, processes, tuned_people
from mos_server.state.records import PUBLISHED
from strangers import Node, ended, tls

# An attacker that has been there for a while has found every limit.
SIEGE_S = 8.0
LONG_SIEGE_S = 300.0


@dataclass
class Besieged(Federation):
    """A server, two participants who stay for several rounds, and a participant who attacks."""

    @property
    def attacker(self) -> Node:
        return Node(self.out / "attacker")

    @property
    def fleet(self) -> int:
        return self.state.config.fleet_port

    def run(self) -> float:
        """Run one round to its end; return its seconds."""
        began = time.monotonic()
        self.round("--wait", "2", beside=["alice", "bob"], timeout_s=900)
        return time.monotonic() - began

    def server_bytes(self) -> int:
        return int(psutil.Process(self.processes.running["server"].pid).memory_info().rss)

    @contextmanager
    def besieged(self, source: str, seconds: float, *, key: bool = False) -> Iterator[None]:
        """Hold connections from an address until the end of the block."""
        words = [sys.executable, besieging.__file__, str(self.fleet), source, str(seconds)]
        words += ["--key", str(self.attacker.folder)] if key else []
        attacker = subprocess.Popen(words)
        try:
            time.sleep(SIEGE_S)
            assert attacker.poll() is None
            yield
            assert attacker.poll() is None, "the siege ended before the round"
        finally:
            attacker.kill()
            attacker.wait()


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    out = tmp_path_factory.mktemp("siege")
    with processes() as running:
        federation = Besieged(out, running, tuned_people(tuned, out, scoring=["alice"])[:2])
        federation.create(sets=QUICK)
        with federation.journal() as journal:
            token, _ = journal.participants.invite("mallory", valid_s=3600)
            journal.participants.enrol(token, federation.attacker.digest, federation.attacker.pem)
        federation.serve()
        federation.join(*federation.participants, rounds=9)
        federation.until("both are ready", lambda: all(map(is_ready, federation.participants)))
        yield federation


def test_a_round_is_published_while_two_addresses_besiege_the_port(federation: Besieged):
    before = federation.server_bytes()
    with federation.besieged("127.0.0.2", 600), federation.besieged("127.0.0.1", 600, key=True):
        federation.run()
        assert federation.server_bytes() - before < 400 << 20
    assert federation.rounds()[-1].status == PUBLISHED


def test_who_proves_nothing_is_gone_after_seconds(federation: Besieged):
    authority = federation.state.pki.authority
    with tls(authority, federation.fleet, "127.0.0.2") as silent, tls(authority, federation.fleet) as half:
        half.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost")
        assert ended(silent, 30)
        assert ended(half, 30)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.1"])
def test_a_round_takes_at_most_twice_as_long_after_five_minutes_of_siege(federation: Besieged, source: str):
    undisturbed = min(federation.run() for _ in range(2))
    with federation.besieged(source, LONG_SIEGE_S + 900, key=source == "127.0.0.1"):
        time.sleep(LONG_SIEGE_S)
        besieged = federation.run()
    print(f"from {source}: {undisturbed:.1f} s undisturbed, {besieged:.1f} s besieged")
    assert federation.rounds()[-1].status == PUBLISHED
    assert besieged <= 2 * undisturbed
