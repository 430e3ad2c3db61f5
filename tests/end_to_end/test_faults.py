"""A round with real processes in which everything dies once and one participant cheats.

It is published all the same.

One federation for all facts, since every process loads a base model:

    alice   has sent her concept when the server is killed
    carol   runs a modified client, whose upload has a tensor too many
    bob     is killed with the question in his hands, and comes back
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from end_to_end.federation import QUICK, Federation, is_ready, join_tuned, processes, tuned_people
from mos_bench.demo import latest_model
from mos_bench.participant import Participant
from mos_common.fused_model import read_fused
from mos_common.kit import read_kit
from mos_common.signing import is_signed, verify_model
from mos_server.state.records import PUBLISHED

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
class Faulty(Federation):
    """A federation in which processes are killed, and what was seen on the way."""

    seen: dict[str, object] = field(default_factory=dict)

    def join_modified(self, someone: Participant) -> None:
        """Start a client that was tampered with."""
        self.processes.start(someone.name, ["python", "-c", MODIFIED, *join_tuned(someone)[1:]])

    def kill(self, name: str) -> list[psutil.Process]:
        """SIGKILL, without a word before; the children it had."""
        process = psutil.Process(self.processes.running[name].pid)
        children = process.children(recursive=True)
        process.kill()
        self.processes.running.pop(name).wait(10)
        return children


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    out = tmp_path_factory.mktemp("faults")
    with processes() as running:
        federation = Faulty(out, running, tuned_people(tuned, out, scoring=()))
        federation.create(sets=QUICK)
        federation.serve()
        bob = federation.participants[1]
        federation.join(bob)
        federation.until("bob is ready", lambda: is_ready(bob))
        run_round(federation, *federation.participants)
        yield federation


def waits_for_bob(federation: Faulty) -> bool:
    return "asked bob" in federation.notes() and len(federation.uploads()) == 2


def run_round(federation: Faulty, alice: Participant, bob: Participant, carol: Participant) -> None:
    """The round with its faults; what they left is in `federation.seen`."""
    running, seen = federation.processes, federation.seen
    seen["cache"] = {file: file.stat().st_mtime_ns for file in (bob.state / "concepts").iterdir()}
    (bob_process := psutil.Process(running.running["bob"].pid)).suspend()  # his SuperNode takes the question
    federation.ask("--wait", "2")
    federation.join(alice)
    federation.join_modified(carol)
    federation.until("bob was asked and the others have answered", lambda: waits_for_bob(federation))
    assert bob_process.status() == psutil.STATUS_STOPPED
    seen["bob's children"] = federation.kill("bob")
    seen["server's children"] = federation.kill("server")
    psutil.wait_procs(seen["bob's children"] + seen["server's children"], timeout=40)
    federation.serve()
    federation.join(bob)
    running.wait("operator", timeout_s=300, beside=["server", *(each.name for each in federation.participants)])
    for someone in federation.participants:
        running.wait(someone.name, timeout_s=120, beside=["server"])


def test_the_round_is_published(federation):
    assert [each.status for each in federation.rounds()] == [PUBLISHED], federation.notes()


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
        assert is_signed(latest_model(someone.state))


def test_a_server_that_is_told_to_end_leaves_nothing(federation):
    children = psutil.Process(federation.processes.running["server"].pid).children(recursive=True)
    federation.processes.running["server"].send_signal(signal.SIGTERM)
    assert federation.processes.running["server"].wait(20) == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []
