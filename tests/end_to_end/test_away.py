"""Pictures that are gone, a kit for somebody else, a port that is closed: with real processes.

Alice joins and tunes. Her pictures go away before the round; after it, carol's kit is tried on her
state folder, and then her own with a port at which nobody listens.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from mos_bench.demo import free_ports, join_command, prepare
from mos_bench.participant import Participant
from mos_bench.processes import Processes
from mos_common.fused_model import read_fused
from mos_common.kit import read_kit, write_kit
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_server.state.records import PUBLISHED

STEPS = 2
QUICK = ("--set", "watch_every=0", "--set", "batch=2")
BIN = Path(sys.executable).parent


def until(what: str, true: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


def words_of(someone: Participant) -> list[str]:
    """`mos-client join` without an end."""
    command = [str(word) for word in join_command(someone, STEPS)]
    place = command.index("--rounds")
    return [str(BIN / command[0]), *command[1:place], *command[place + 2 :], *QUICK]


@contextmanager
def joined(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `mos-client join` within the block, with what it says in `log`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130


@contextmanager
def forwarding(port: int, to: int) -> Iterator[None]:
    """Let connections to one port of loopback reach another within the block."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        finally:
            target.close()

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", to))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield
        listener.shutdown(socket.SHUT_RDWR)


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file of a state folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Participant]]]:
    """A server that runs, and has published a model while alice's pictures were away."""
    out = tmp_path_factory.mktemp("away")
    people = prepare(out)
    with Processes({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}) as processes:
        fleet, mos = free_ports(2)
        ports = ["--fleet-port", fleet, "--mos-port", mos]
        processes.do("operator", ["mos-server", "init", out / "server", *ports, "--method", "average"])
        for someone in people:
            processes.do("operator", ["mos-server", "invite", out / "server", someone.name, "--out", someone.kit])
        processes.start("server", ["mos-server", "serve", out / "server"])
        alice = people[0]
        with joined(words_of(alice), out / "alice.log"):
            until("alice has tuned", (alice.state / "what-leaves.txt").exists)
            alice.pictures.rename(out / "stick")
            processes.do("operator", ["mos-server", "round", out / "server", "--wait", "1", "--deadline", "10m"])
            until("alice has the model", (alice.state / "models" / "round-001").is_dir)
        yield out, people
    left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"processes left behind: {left}"


def test_a_concept_whose_pictures_are_gone_is_published_without_scores(federation):
    out, (alice, *_) = federation
    with closing(Journal(open_state(out / "server").database)) as journal:
        assert journal.rounds.get("round-001").status == PUBLISHED
        scores = {upload.token: upload.identity for upload in journal.uploads.of("round-001")}
        notes = [text for _, _, text in journal.notes.of("round-001")]
    concepts = read_fused(open_state(out / "server").artefacts.model("round-001")).manifest.concepts
    assert [concept.token for concept in concepts] == [alice.token]
    assert scores == {alice.token: None}
    assert [text for text in notes if "alice" in text and "scores" in text] == [
        "alice: no scores, the concept stays: its owner's pictures are not there, and only scores need them "
        "(PicturesError)"
    ]
    assert not [text for text in notes if text.startswith("alice: no answer")]


def test_the_owner_is_told_once_that_the_pictures_are_gone(federation):
    out, (alice, *_) = federation
    told = (out / "alice.log").read_text()
    assert told.count("is sent all the same, without scores") == 1
    assert str(alice.pictures) in told
    assert len(list((alice.state / "concepts").glob("*.safetensors"))) == 1


def test_a_kit_for_somebody_else_changes_nothing(federation):
    out, (alice, bob, carol) = federation
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
    with closing(Journal(open_state(out / "server").database)) as journal:
        assert "carol" in {name for name, _, used in journal.participants.invitations() if used is None}


def test_a_port_that_is_closed_is_said_once_and_again_when_it_is_open(federation):
    """The pictures are still away, and nothing is tuned: the concept lies in the state folder."""
    out, (alice, *_) = federation
    kit = read_kit(alice.kit)
    (closed,) = free_ports(1)
    write_kit(kit.model_copy(update={"mos": f"127.0.0.1:{closed}"}), alice.kit)
    log = out / "again.log"
    with joined(words_of(alice), log):
        until("it is said that the port is closed", lambda: f"127.0.0.1:{closed} cannot be reached" in log.read_text())
        time.sleep(8)
        with forwarding(int(closed), int(kit.mos.rpartition(":")[2])):
            until("it is said that it is open", lambda: f"127.0.0.1:{closed} is reachable again" in log.read_text())
    told = log.read_text()
    assert told.count("published models cannot be fetched, trying again every 2 s") == 1
    assert "connection refused" in told
