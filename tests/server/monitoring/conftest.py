"""A server as a process, on the state folder of a federation that has published a model."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from mos_bench.demo import free_ports
from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_server.state import certificates
from mos_server.state.folder import ServerConfig, State, create_state
from mos_server.state.journal import Journal
from server.round.conftest import Federation, federation

__all__ = ["federation"]

FAULTS = Path(__file__).parents[2] / "end_to_end" / "faults"
COMMAND = [sys.executable, "-c", "from mos_server.cli.main import main; main()"]
# They end thirty days after the twentieth minute of a recording.
CERTIFICATES_VALID = dt.timedelta(days=30, minutes=20)
Labels = tuple[tuple[str, str], ...]
Scrape = dict[tuple[str, Labels], float]


@dataclass
class Served:
    """A server that runs on `state`; the faults read files of their names in `faults`."""

    state: State
    url: str
    faults: Path

    def get(self, path: str, **headers: str) -> requests.Response:
        """Ask the port for machines."""
        return requests.get(f"{self.url}{path}", headers=headers, timeout=30)

    def scrape(self) -> Scrape:
        """Return every sample of `/metrics`, by name and labels."""
        text = self.get("/metrics").text
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def refuse_a_stranger(self) -> None:
        """Call the fleet's port without a signature."""
        address = f"https://127.0.0.1:{self.state.config.fleet_port}/v1/fleet/pull-messages"
        headers = {"content-type": "application/protobuf"}
        authority = self.state.pki.authority
        assert requests.post(address, data=b"x", headers=headers, verify=str(authority), timeout=30).status_code == 401

    @contextmanager
    def journal(self) -> Iterator[Journal]:
        """Open the journal beside the server."""
        journal = Journal(self.state.database)
        yield journal
        journal.close()


@contextmanager
def serving(state: State, folder: Path, *flags: str) -> Iterator[Served]:
    """Run `mos-server serve` on a state folder, with the faults of `tests/end_to_end/faults`."""
    faults = folder / "faults"
    faults.mkdir()
    (faults / "clock").write_text("0")
    environment = {
        **os.environ,
        "PYTHONPATH": str(FAULTS),
        "OMP_NUM_THREADS": "1",
        "MOS_TEST_CLOCK": str(faults / "clock"),
        "MOS_TEST_FLOWER": "on-time",
        "MOS_TEST_FREE": str(faults / "free"),
    }
    command = [*COMMAND, "serve", str(state.path), "--metrics-port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            shown = _read_until(server, "serving ")
            url = re.search(r"metrics: (http://127\.0\.0\.1:\d+)/metrics", shown)[1]
            yield Served(state, url, faults)
        finally:
            server.terminate()
            server.wait(30)


def _read_until(server: subprocess.Popen[str], words: str) -> str:
    shown, until = "", time.monotonic() + 60
    while words not in shown:
        assert time.monotonic() < until, shown
        ready, _, _ = select.select([server.stdout], [], [], 1)
        if ready:
            line = server.stdout.readline()
            assert line, shown
            shown += line
    return shown


def promtool(*arguments: object, text: str | None = None) -> str:
    """Run promtool, which reads `text`, and return what it says; without it, skip or fail."""
    found = shutil.which("promtool")
    if found is None:
        reason = "no promtool here: install Debian's package prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    ran = subprocess.run(
        [found, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def published_state(
    tmp_path_factory: pytest.TempPathFactory,
    random_base: Callable[..., Base],
    make_concept: Callable[..., Concept],
    tiny: Base,
) -> State:
    """A federation whose round-001 published a model; alice's and bob's concepts lost 0.1 each.

    The round ran on a random base, and those to come are on `tiny`, which a server can load.
    """
    folder, base = tmp_path_factory.mktemp("federation"), random_base(width=8)
    (folder / "keys").mkdir()
    fleet, mos = map(int, free_ports(2))
    config = ServerConfig(base="random", base_fingerprint=base.fingerprint, fleet_port=fleet, mos_port=mos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "VALID", CERTIFICATES_VALID)
        state = create_state(folder / "state", config)
    journal = Journal(state.database)
    made = Federation(state, journal, base, folder / "keys", make_concept)
    made.run(*(made.machine(name) for name in ("alice", "bob")), wait=2)
    journal.participants.saw(journal.participants.all()[0].key)
    journal.close()
    change_config(state, base="tiny", base_fingerprint=tiny.fingerprint)
    return State(state.path)


@pytest.fixture
def another(published_state: State, tmp_path: Path) -> State:
    """A copy of that folder, on other ports."""
    copy = State(shutil.copytree(published_state.path, tmp_path / "state"))
    fleet, mos = map(int, free_ports(2))
    change_config(copy, fleet_port=fleet, mos_port=mos)
    return State(copy.path)


def change_config(state: State, **values: object) -> None:
    """Change values of a state folder's config.json."""
    file = state.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="module")
def served(published_state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server on that folder."""
    with serving(published_state, tmp_path_factory.mktemp("served")) as server:
        yield server
