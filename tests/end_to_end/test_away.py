"""Pictures that are gone, a kit for somebody else, a port that is closed: with real processes.

Alice joins and tunes. Her pictures go away before the round; after it, carol's kit is tried on her
state folder, and then her own with a port at which nobody listens.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from end_to_end.federation import ENVIRONMENT, Federation, is_ready, join_tuned, processes, tuned_people
from mos_bench.demo import free_ports
from mos_bench.participant import Participant
from mos_common.fused_model import read_fused
from mos_common.kit import read_kit, write_kit
from mos_server.state.records import PUBLISHED
from relay import Relay

BIN = Path(sys.executable).parent


@contextmanager
def joined(someone: Participant, log: Path) -> Iterator[None]:
    """Run `mos-client join` without an end within the block, with what it says in `log`."""
    words = list(map(str, join_tuned(someone, rounds=None)))
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]], stdout=output, stderr=output, env=os.environ | ENVIRONMENT
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file of a state folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that runs, and has published a model while alice's pictures were away."""
    out = tmp_path_factory.mktemp("away")
    with processes() as running:
        federation = Federation(out, running, tuned_people(tuned, out))
        alice, *_ = federation.participants
        federation.create(method="average")
        federation.serve()
        with joined(alice, out / "alice.log"):
            federation.until("alice is ready", lambda: is_ready(alice))
            alice.pictures.rename(out / "stick")
            federation.round()
            federation.until("alice has the model", (alice.state / "models" / "round-001").is_dir)
        yield federation


def test_a_concept_whose_pictures_are_gone_is_published_without_scores(federation):
    alice, *_ = federation.participants
    assert [each.status for each in federation.rounds()] == [PUBLISHED]
    scores, notes = {upload.token: upload.identity for upload in federation.uploads()}, federation.notes()
    concepts = read_fused(federation.state.artefacts.model("round-001")).manifest.concepts
    assert [concept.token for concept in concepts] == [alice.token]
    assert scores == {alice.token: None}
    assert [text for text in notes if "alice" in text and "scores" in text] == [
        "alice: no scores, the concept stays: its owner's pictures are not there, and only scores need them "
        "(PicturesError)"
    ]
    assert not [text for text in notes if text.startswith("alice: no answer")]


def test_the_owner_is_told_once_that_the_pictures_are_gone(federation):
    alice, *_ = federation.participants
    told = (federation.out / "alice.log").read_text()
    assert told.count("is sent all the same, without scores") == 1
    assert str(alice.pictures) in told
    assert len(list((alice.state / "concepts").glob("*.safetensors"))) == 1


def test_a_kit_for_somebody_else_changes_nothing(federation):
    alice, bob, carol = federation.participants
    before = contents(alice.state)
    words = [BIN / "mos-client", "join", carol.kit, bob.pictures, "--concept", alice.concept, "--class", "dog"]
    done = subprocess.run(
        [*map(str, words), "--state", str(alice.state)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 8
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "this state folder is alice's" in line
    assert "the kit is for carol: give another --state" in line
    assert contents(alice.state) == before
    with federation.journal() as journal:
        assert "carol" in {name for name, _, used in journal.participants.invitations() if used is None}


def test_complaint_2_a_port_that_is_closed_is_said_once_and_again_when_it_is_open(federation):
    """The pictures are still away, and nothing is tuned: the concept lies in the state folder."""
    alice, *_ = federation.participants
    kit = read_kit(alice.kit)
    (closed,) = free_ports(1)
    write_kit(kit.model_copy(update={"mos": f"127.0.0.1:{closed}"}), alice.kit)
    log = federation.out / "again.log"
    with joined(alice, log):
        federation.until(
            "it is said that it is closed", lambda: f"127.0.0.1:{closed} cannot be reached" in log.read_text()
        )
        time.sleep(8)
        with Relay(int(kit.mos.rpartition(":")[2]), port=int(closed)):
            federation.until(
                "it is said that it is open", lambda: f"127.0.0.1:{closed} is reachable again" in log.read_text()
            )
    told = log.read_text()
    assert told.count("published models cannot be fetched, trying again every 2 s") == 1
    assert "connection refused" in told
