"""A round with real processes in which everything dies once and one participant cheats.

It is published all the same.

One federation for all facts, since every process loads a base model:

    alice   has sent her concept when the server is killed
    carol   runs a modified client, whose upload has a tensor too many
    bob     is killed with the question in his hands, and comes back
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from mos_bench.demo import free_ports, join_command, latest_model, prepare
from mos_bench.participant import Participant
from mos_bench.processes import Processes
from mos_common.fused_model import read_fused
from mos_common.kit import read_kit
from mos_common.signing import verify_model
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED, Round, Upload

STEPS = 2
# A client that was tampered with: the upload is spoiled just before it is sent.
MODIFIED = """
import json, torch
from safetensors.torch import load, save
from mos_common import messages

honest = messages.upload_content

def dishonest(upload):
    metadata = json.loads(upload.data[8 : 8 + int.from_bytes(upload.data[:8], "little")])["__metadata__"]
    tensors = load(upload.data)
    tensors["unet.evil.lora_A.weight"] = torch.zeros(2, 2)
    return honest(messages.Upload(save(tensors, metadata), upload.seconds))

messages.upload_content = dishonest
from mos_client.cli.main import main
main()
"""


@dataclass
class Federation:
    """The folders of one server and its participants, and what was seen on the way."""

    out: Path
    participants: list[Participant]
    processes: Processes
    seen: dict[str, object] = field(default_factory=dict)

    @property
    def server(self) -> Path:
        return self.out / "server"

    def start(self, someone: Participant, *, modified: bool = False) -> None:
        """`mos-client join`, or a modified one."""
        command = join_command(someone, STEPS)
        if modified:
            command = ["python", "-c", MODIFIED, *command[1:]]
        self.processes.start(someone.name, command)

    def serve(self) -> None:
        self.processes.start("server", ["mos-server", "serve", self.server])

    def kill(self, name: str) -> list[psutil.Process]:
        """SIGKILL, without a word before; the children it had."""
        process = psutil.Process(self.processes.running[name].pid)
        children = process.children(recursive=True)
        process.kill()
        self.processes.running.pop(name).wait(10)
        return children

    def notes(self) -> list[str]:
        with closing(Journal(open_state(self.server).database)) as journal:
            return [text for _, _, text in journal.notes.of("round-001")]

    def uploads(self) -> list[Upload]:
        with closing(Journal(open_state(self.server).database)) as journal:
            return journal.uploads.of("round-001")

    def round(self) -> Round:
        with closing(Journal(open_state(self.server).database)) as journal:
            return journal.rounds.get("round-001")

    def until(self, what: str, true: Callable[[], object], seconds: float = 150) -> None:
        end = time.monotonic() + seconds
        while not true():
            for name, process in self.processes.running.items():
                assert process.poll() in (None, 0), f"{name} ended while we waited for: {what}"
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
            time.sleep(0.2)


def tuned(someone: Participant) -> bool:
    return (someone.state / "what-leaves.txt").exists()


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    out = tmp_path_factory.mktemp("faults")
    alice, bob, carol = prepare(out)
    everybody = [alice, bob, carol]
    with Processes({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}) as processes:
        federation = Federation(out, everybody, processes)
        fleet, mos = free_ports(2)
        processes.do("operator", ["mos-server", "init", out / "server", "--fleet-port", fleet, "--mos-port", mos])
        for someone in everybody:
            processes.do("operator", ["mos-server", "invite", out / "server", someone.name, "--out", someone.kit])
        federation.serve()
        federation.start(bob)
        federation.until("bob has tuned", lambda: tuned(bob))
        run_round(federation, *everybody)
        yield federation
    left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"processes left behind: {left}"


def waits_for_bob(federation: Federation) -> bool:
    return "asked bob" in federation.notes() and len(federation.uploads()) == 2


def run_round(federation: Federation, alice: Participant, bob: Participant, carol: Participant) -> None:
    """The round with its faults; what they left is in `federation.seen`."""
    processes, seen = federation.processes, federation.seen
    seen["cache"] = {file: file.stat().st_mtime_ns for file in (bob.state / "concepts").iterdir()}
    (bob_process := psutil.Process(processes.running["bob"].pid)).suspend()  # his SuperNode takes the question
    processes.start("operator", ["mos-server", "round", federation.server, "--wait", "2", "--deadline", "10m"])
    federation.start(alice)
    federation.start(carol, modified=True)
    federation.until("bob was asked and the others have answered", lambda: waits_for_bob(federation))
    assert bob_process.status() == psutil.STATUS_STOPPED
    seen["bob's children"] = federation.kill("bob")
    seen["server's children"] = federation.kill("server")
    psutil.wait_procs(seen["bob's children"] + seen["server's children"], timeout=40)
    federation.serve()
    federation.start(bob)
    processes.wait("operator", timeout_s=300, beside=["server", *(each.name for each in federation.participants)])
    for someone in federation.participants:
        processes.wait(someone.name, timeout_s=120, beside=["server"])


def test_the_round_is_published(federation):
    assert federation.round().status == PUBLISHED, federation.notes()


def test_honest_concepts_are_in_it_and_no_other(federation):
    alice, bob, *_ = federation.participants
    model = latest_model(alice.state)
    verify_model(model, read_kit(alice.kit).signing_key)
    assert {concept.token for concept in read_fused(model).manifest.concepts} == {alice.token, bob.token}


def test_a_spoiled_upload_is_refused_with_its_reason(federation):
    reasons = {upload.participant: upload.refused for upload in federation.uploads() if upload.refused}
    assert set(reasons) == {"carol"}
    assert "unet.evil" in reasons["carol"]
    assert len(list((federation.server / "concepts").glob("*.safetensors"))) == 2


def test_a_participant_who_has_uploaded_is_not_asked_again_after_the_server_was_killed(federation):
    notes = federation.notes()
    assert notes.count("asked alice") == 2, notes  # the second time for her scores
    assert notes.count("asked carol") == 1, notes


def test_a_participant_that_was_killed_answers_from_its_cache(federation):
    bob = federation.participants[1]
    assert {file: file.stat().st_mtime_ns for file in (bob.state / "concepts").iterdir()} == federation.seen["cache"]
    assert federation.notes().count("asked bob") >= 3  # before he was killed, after it, and for his scores


def test_what_is_killed_takes_its_children_along(federation):
    for whose in ("bob's children", "server's children"):
        children = federation.seen[whose]
        assert children, whose
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_everybody_has_the_model_and_ends_well(federation):
    for someone in federation.participants:
        assert federation.processes.running[someone.name].returncode == 0
        assert (latest_model(someone.state) / "manifest.sig").exists()


def test_a_server_that_is_told_to_end_leaves_nothing(federation):
    children = psutil.Process(federation.processes.running["server"].pid).children(recursive=True)
    federation.processes.running["server"].send_signal(signal.SIGTERM)
    assert federation.processes.running["server"].wait(20) == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
