"""A disk that is full, or read-only, ends nothing: the round pauses and goes on by itself."""

from __future__ import annotations

import errno
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from end_to_end.dying import Dying, warm
from end_to_end.federation import check_nothing_left
from mos_bench.processes import Processes
from mos_server.state.folder import open_state
from mos_server.state.pause import pause_of


@pytest.fixture(scope="module")
def federation(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Dying:
    return warm(tmp_path_factory.mktemp("disk"), tuned)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    check_nothing_left()


def status(federation: Dying) -> str:
    command = [str(Path(sys.executable).parent / "mos-server"), "status", str(federation.server)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def is_paused(federation: Dying) -> bool:
    return bool(pause_of(open_state(federation.server)))


def with_trouble(
    federation: Dying, number: int, begins: Callable[[], object], folder: Path, whose: str, seconds: float = 10
) -> bytes:
    """Run a round in which the disk of "server" or "alice" fails from `begins` on, for a while.

    That the server's fails is what `mos-server status` says.
    """
    trouble = federation.root / "trouble"
    federation.fresh()
    environment = federation.environment()
    spoilt = {"MOS_TEST_TROUBLE": str(trouble), "MOS_TEST_DISK": str(folder)}
    with Processes(environment | (spoilt if whose == "server" else {})) as processes:
        federation.start(processes, joining=False)
        processes.env = environment | (spoilt if whose == "alice" else {})
        for someone in federation.participants:
            federation.again(processes, someone.name)
        processes.env = environment
        federation.ask(processes)
        federation.until(processes, begins)
        trouble.write_text(str(number))
        try:
            if whose == "server":
                federation.until(processes, lambda: is_paused(federation) and "paused: " in status(federation), 120)
            time.sleep(seconds)
            assert processes.running["server"].poll() is None
            assert federation.round().unfinished
        finally:
            trouble.unlink()
        federation.finish(processes)
    assert "paused: " not in status(federation)
    return federation.published()


def test_a_full_disk_pauses_the_round_until_there_is_room(federation, undisturbed):
    """From the moment on that the round fuses."""

    def begun() -> bool:
        return any(note.startswith("fusing ") for note in federation.notes())

    assert with_trouble(federation, errno.ENOSPC, begun, federation.server, "server", 3) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT], ids=["full", "read-only", "quota"])
@pytest.mark.parametrize("begins", ["", "starting on", "asked ", "<alice/", "settings of fusion", "unet", "scored"])
def test_trouble_at_every_step_pauses_the_round(federation, undisturbed, number, begins):
    port = open_state(federation.server).config.mos_port

    def begun() -> bool:
        if not begins:
            return answers(port)
        return any(begins in note or "identity" in note for note in federation.notes())

    assert with_trouble(federation, number, begun, federation.server, "server") == undisturbed


def answers(port: int) -> bool:
    """Return True if the server is up. One that is started on a full disk says so, and ends."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_trouble_of_a_participant_s_disk_loses_nothing_that_was_tuned(federation, number):
    """Alice's, from the moment on that she is asked for her concept, until she is asked again."""
    alice = federation.participants[0]
    tuned = concept_files(federation.root / "warm")

    def begun() -> bool:
        return any(note.startswith("asked alice") for note in federation.notes())

    made = with_trouble(federation, number, begun, alice.state, "alice")
    assert alice.token in {concept["token"] for concept in json.loads(made)["concepts"]}
    assert tuned
    assert concept_files(federation.live) == tuned


def concept_files(folder: Path) -> dict[Path, int]:
    """Return when each concept file of a participant was written."""
    files = folder.glob("participants/*/state/concepts/*.safetensors")
    return {file.relative_to(folder): file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
def test_a_disk_that_is_really_full_while_a_round_runs_ends_no_server(federation, undisturbed):
    """A disk of 40 MB with 100 kB free, and Flower's database on it."""
    federation.fresh()
    kept = federation.root / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.move(federation.server, kept)
    federation.server.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(federation.server)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        shutil.copytree(kept, federation.server, dirs_exist_ok=True)
        with Processes(federation.environment()) as processes:
            federation.start(processes)
            federation.ask(processes)
            federation.until(processes, federation.notes)
            filler = federation.server / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(federation.server).free - 100_000))
            federation.until(processes, lambda: "paused: " in status(federation), 120)
            filler.unlink()
            federation.finish(processes)
        assert federation.published() == undisturbed
    finally:
        subprocess.run(["umount", str(federation.server)], check=True)
