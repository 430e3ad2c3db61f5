"""Pruning removes what nobody needs, says how much that was, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mos_server.cli.main import app
from mos_server.state.folder import ServerConfig, State, create_state, locked
from mos_server.state.journal import Journal
from mos_server.state.journal.postgresql import PostgreSQL
from mos_server.state.records import FAILED, HELD_BACK, PUBLISHED, SCORING, RoundSettings, Upload

KEPT, GONE = "ab" * 32, "cd" * 32


@pytest.fixture
def state(tmp_path: Path, place: Path | PostgreSQL) -> State:
    """Three published rounds, a failed one, and one under way; a kept concept and one withdrawn."""
    url = place.url if isinstance(place, PostgreSQL) else ""
    made = create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32, journal=url))
    with closing(Journal(made.database)) as journal:
        for status in (PUBLISHED, PUBLISHED, PUBLISHED, FAILED, SCORING):
            name = journal.rounds.ask(RoundSettings()).id
            journal.rounds.advance(name, status)
            if status == PUBLISHED:
                put(made.artefacts.model(name) / "manifest.sig", 5)
            put(made.artefacts.candidate(name) / "adapter.safetensors", 100)
        journal.uploads.add(Upload(0, "round-001", "k", "alice", "<cat>", KEPT, 1, 1.0, None, None))
        journal.uploads.add(Upload(0, "round-001", "k", "bob", "<cat>", GONE, 1, 1.0, "withdrawn", None))
    for whose in (KEPT, GONE, "ordinary"):
        put(made.artefacts.moments / f"{whose}-{'0' * 64}.safetensors", 10)
    put(made.artefacts.concept_file(KEPT), 20)
    put(made.flower / "superlink.db", 1000)
    return made


def put(path: Path, size: int, *, age_s: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def prune(state: State, *flags: str) -> str:
    done = CliRunner().invoke(app, ["prune", str(state.path), *flags])
    assert done.exit_code == 0, done.output
    return done.output


def files(state: State) -> set[str]:
    inside = {path.relative_to(state.path).as_posix() for path in state.path.rglob("*") if path.is_file()}
    return {path for path in inside if not path.startswith(("server.db", "audit", "pki", "lock", "pid"))}


def test_what_nobody_needs_goes_and_the_rest_stays(state):
    said = prune(state)
    assert files(state) == {
        "config.json",
        f"concepts/{KEPT}.safetensors",
        f"moments/{KEPT}-{'0' * 64}.safetensors",
        f"moments/ordinary-{'0' * 64}.safetensors",
        "models/round-001/manifest.sig",
        "models/round-002/manifest.sig",
        "models/round-003/manifest.sig",
        "models/round-005-candidate/adapter.safetensors",  # its round is scoring it
    }
    assert "freed 0.00 MB (1,410 bytes)" in said  # four candidates, one moment, Flower's file
    assert prune(state).splitlines() == ["freed 0.00 MB (0 bytes)"]


def test_a_dry_run_says_the_same_and_removes_nothing(state):
    before = files(state)
    dry = prune(state, "--keep", "1", "--dry-run")
    assert files(state) == before
    assert dry.replace("would free", "freed") == prune(state, "--keep", "1")


def test_the_newest_models_are_kept(state):
    prune(state, "--keep", "2")
    assert {path.name for path in (state.path / "models").iterdir()} == {
        "round-002",
        "round-003",
        "round-005-candidate",
    }


def test_the_candidate_that_was_held_back_last_is_kept_to_look_at(state):
    with closing(Journal(state.database)) as journal:
        journal.rounds.advance("round-005", HELD_BACK)
    prune(state)
    assert state.artefacts.candidate("round-005").is_dir()
    with closing(Journal(state.database)) as journal:
        journal.rounds.ask(RoundSettings())
    prune(state)
    assert not state.artefacts.candidate("round-005").exists()


def test_leftovers_go_when_they_are_old(state):
    old = put(state.path / "models" / ".round-002.x1y2" / "adapter.safetensors", 3, age_s=7200)
    os.utime(old.parent, (time.time() - 7200,) * 2)
    lost = put(state.artefacts.concept_file(GONE), 3, age_s=7200)
    new = put(state.path / "concepts" / ".abc.safetensors.x1", 3)
    unjournalled = put(state.artefacts.concept_file("ef" * 32), 3)  # its row follows at once
    assert "left by a process" in prune(state)
    assert [path.exists() for path in (old, old.parent, lost, new, unjournalled)] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_beside_a_server_flower_and_a_model_that_is_being_fetched_are_left(state):
    """Another process holds the lock and reads a model, as one that serves a download does."""
    fetched = state.artefacts.model("round-001") / "manifest.sig"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom mos_server.state.folder import State, locked\n"
        f"with locked(State(Path({str(state.path)!r}))), open({str(fetched)!r}):\n"
        "    print('reading', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "reading\n"
        said = prune(state, "--keep", "1")
        assert "since a server is running" in said
        assert fetched.exists()
        assert not state.artefacts.model("round-002").exists()
        assert (state.flower / "superlink.db").exists()
        server.kill()


def test_the_audit_tells_what_was_pruned(state):
    prune(state, "--keep", "1")
    with closing(Journal(state.database)) as journal, locked(state):
        journal.audit.check()
        *_, last = journal.audit.entries()
    assert last["what"] == "pruned"
    assert {"round-001", "round-002"} <= set(last["details"]["models"])


def test_own_changes_of_the_withdrawn_and_beside_no_model_go(state):
    """Those of who agreed stay as long as their model does."""
    with closing(Journal(state.database)) as journal:
        journal.uploads.add(Upload(0, "round-002", "k", "alice", "<cat>", KEPT, 1, 1.0, None, None, own=True))
    for name in ("round-002.own/alice.cat", "round-002.own/bob.cat", "round-009.own/alice.cat"):
        put(state.path / "models" / name / "manifest.json", 7)
    prune(state)
    assert {file for file in files(state) if ".own/" in file} == {"models/round-002.own/alice.cat/manifest.json"}
    prune(state, "--keep", "1")
    assert not any(".own" in file for file in files(state))


def test_the_contact_sheet_of_a_model_that_is_gone_is_removed(state: State):
    for name in ("round-008-abcdef012345", "round-009-abcdef012345"):
        (state.artefacts.sheets / name).mkdir(parents=True)
    state.artefacts.model("round-009").mkdir(parents=True)
    prune(state)
    assert [each.name for each in state.artefacts.sheets.iterdir()] == ["round-009-abcdef012345"]
