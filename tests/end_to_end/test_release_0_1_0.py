"""A client of release 0.1.0, in an environment of its own, at a server of today."""

from __future__ import annotations

import os
import subprocess
import tarfile
import venv
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import grpc
import pytest

from end_to_end.federation import CONCEPTS, Federation, processes
from mos_bench.demo import prepare
from mos_client.federation.enrolment import enrol
from mos_common.kit import read_kit
from mos_common.release import RELEASE

COMMIT = "b72afb3e052a"
TOP = Path(__file__).parents[2]
TELLS = f"this client is release 0.1.0 or earlier, the server is release {RELEASE}, and they do not fit together"
ADVICE = f"install release {RELEASE} and run the same command again"
Old = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    """Return a function that runs `mos-client` of 0.1.0, with today's libraries."""
    folder = tmp_path_factory.mktemp("release")
    command = ["git", "-C", str(TOP), "archive", COMMIT, "client", "common"]
    archived = subprocess.run(command, capture_output=True, check=False)
    if archived.returncode:
        pytest.skip("this copy of the repository has no history")
    with tarfile.open(fileobj=BytesIO(archived.stdout)) as archive:
        archive.extractall(folder, filter="data")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    libraries = Path(grpc.__file__).parents[1]
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "release.pth").write_text("\n".join(map(str, [folder / "client", folder / "common", libraries])))

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        program = "from mos_client.cli import main; main()"
        return subprocess.run(
            [str(python), "-c", program, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
            cwd=folder,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )

    return run


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server that runs, and three people who have not tuned."""
    out = tmp_path_factory.mktemp("federation")
    with processes() as running:
        federation = Federation(out, running, prepare(out, CONCEPTS))
        federation.create()
        federation.serve()
        yield federation


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_who_joins_is_told_what_to_install_before_anything_is_tuned(old: Old, federation):
    alice, *_ = federation.participants
    state = federation.out / "alice-0.1.0"
    words = ["join", alice.kit, alice.pictures, "--concept", alice.concept, "--class", alice.class_word]
    done = old(*words, "--state", state)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert TELLS in line
    assert ADVICE in line
    assert not list(state.glob("concepts/*")) + list(state.glob("tuning/*"))
    with federation.journal() as journal:
        assert "alice" in {name for name, _, used in journal.participants.invitations() if used is None}
    # and with the release of today the same kit works
    assert enrol(read_kit(alice.kit), state).participant == "alice"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_who_has_enrolled_long_ago_is_told_too_and_so_is_the_operator(old: Old, federation):
    _, bob, *_ = federation.participants
    enrol(read_kit(bob.kit), bob.state)
    done = old("download", bob.kit, "--state", bob.state, "--out", federation.out / "models")
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert TELLS in line
    assert ADVICE in line
    logged = (federation.server / "log" / "serve.log").read_text()
    assert f"bob runs release 0.1.0 or earlier, which does not fit release {RELEASE} of this server" in logged
    with federation.journal() as journal:
        assert {each.name: each.release for each in journal.participants.all()}["bob"] == "0.1.0 or earlier"
