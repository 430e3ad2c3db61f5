"""Enrolment and downloads at a real server while strangers and a participant hold its calls."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

import besieging
import besieging_calls
from end_to_end.federation import Federation, processes
from mos_client.federation.download import download_model
from mos_client.federation.enrolment import enrol
from mos_common.kit import Kit, read_kit
from mos_common.node_key import create_node_key, key_digest, public_pem
from mos_common.signing import sign_model
from mos_server.cli.people import invite
from mos_server.state.records import PUBLISHED, RoundSettings
from relay import Relay

BYTES = 256 << 10
LARGE_BYTES = 3 << 20
SLOW_LINE = 32_000.0
LONG_SIEGE_S = 300.0


@dataclass
class Besieged(Federation):
    """A server with two published models, a small and a large one, and an admitted attacker."""

    models: dict[str, bytes] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return self.state.config.mos_port

    def kit(self, name: str, port: int | None = None) -> Kit:
        """Invite somebody, who reaches the server through `port`."""
        invite(self.server, name, self.out / f"{name}.kit")
        kit = read_kit(self.out / f"{name}.kit")
        return kit.model_copy(update={"mos": f"127.0.0.1:{port}"}) if port else kit

    def publish(self, size: int) -> None:
        data = os.urandom(size)
        with self.journal() as journal:
            round_ = journal.rounds.ask(RoundSettings())
            folder = self.state.artefacts.model(round_.id)
            folder.mkdir(parents=True)
            (folder / besieging_calls.FILE).write_bytes(data)
            file = {"size": size, "sha256": hashlib.sha256(data).hexdigest()}
            manifest = {"files": {besieging_calls.FILE: file}, "concepts": [], "round": round_.id}
            (folder / "manifest.json").write_text(json.dumps(manifest))
            sign_model(folder, self.state.pki.signing_key())
            journal.rounds.advance(round_.id, PUBLISHED)
        self.models[round_.id] = data

    def visit(self, name: str, model: str = "round-001", port: int | None = None) -> float:
        """Enrol, describe and download as somebody new; return the seconds that it took."""
        began = time.monotonic()
        member = enrol(self.kit(name, port), self.out / name, lambda line: None)
        folder = download_model(member, model, self.out / name / "models")
        assert (folder / besieging_calls.FILE).read_bytes() == self.models[model]
        return time.monotonic() - began

    @contextmanager
    def besieged(self, half_open: int, unread: int, seconds: float, source: str = "127.0.0.1") -> Iterator[None]:
        """Hold calls from an address, and after a moment enter the block."""
        with Relay(self.port, source=source) as line:
            words = [str(line.port), str(self.state.pki.authority), str(self.out / "mallory"), str(seconds)]
            attacker = subprocess.Popen([sys.executable, besieging_calls.__file__, *words, str(half_open), str(unread)])
            try:
                time.sleep(5)
                assert attacker.poll() is None
                yield
                assert attacker.poll() is None, "the siege ended first"
            finally:
                attacker.kill()
                attacker.wait()

    @contextmanager
    def idle_connections(self, source: str, seconds: float) -> Iterator[None]:
        attacker = subprocess.Popen([sys.executable, besieging.__file__, str(self.port), source, str(seconds)])
        try:
            yield
            assert attacker.poll() is None
        finally:
            attacker.kill()
            attacker.wait()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    out = tmp_path_factory.mktemp("downloads")
    with processes() as running:
        federation = Besieged(out, running)
        federation.create()
        federation.publish(BYTES)
        federation.publish(LARGE_BYTES)
        mallory = create_node_key(out / "mallory")
        with federation.journal() as journal:
            token, _ = journal.participants.invite("mallory", valid_s=3600)
            journal.participants.enrol(token, key_digest(public_pem(mallory)), public_pem(mallory))
        federation.serve()
        federation.visit("somebody")  # it waits until the server answers
        yield federation


def test_who_is_honest_enrols_and_downloads_beside_calls_that_are_held(federation: Besieged):
    """Forty calls whose request never comes, and ten downloads that nobody reads."""
    with federation.besieged(40, 10, 600):
        federation.visit("alice")
        federation.visit("bob", "round-002")


def test_complaint_5_a_download_on_a_slow_line_completes(federation: Besieged):
    with Relay(federation.port, down_bytes_per_s=SLOW_LINE) as line:
        assert federation.visit("carol", port=line.port) > BYTES / SLOW_LINE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_megabytes_on_a_slow_line_complete(federation: Besieged):
    with Relay(federation.port, down_bytes_per_s=SLOW_LINE) as line:
        print(f"3 MB at 32 kB/s: {federation.visit('dave', 'round-002', line.port):.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.1"])
def test_five_minutes_of_siege_cost_at_most_as_much_again(federation: Besieged, source: str):
    """200 calls whose request never comes, 50 unread downloads, 600 idle connections."""
    undisturbed = max(federation.visit(f"before-{source[-1]}-{n}", "round-002") for n in range(3))
    with (
        federation.idle_connections(source, LONG_SIEGE_S + 900),
        federation.besieged(200, 50, LONG_SIEGE_S + 900, source),
    ):
        time.sleep(LONG_SIEGE_S)
        besieged = [federation.visit(f"then-{source[-1]}-{n}", "round-002") for n in range(5)]
    print(f"from {source}: {undisturbed:.2f} s undisturbed, {sorted(besieged)[2]:.2f} s besieged")
    assert sorted(besieged)[2] <= 2 * undisturbed + 1
