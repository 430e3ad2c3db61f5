"""A state folder that can only be read is shown by `status`, and refused by those that write."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mos_common.errors import StateError
from mos_server.cli.main import app
from mos_server.state import reading
from mos_server.state.folder import is_served, locked, open_state
from mos_server.state.journal import Journal
from mos_server.state.pause import Pause
from mos_server.state.records import PUBLISHED, RoundSettings


def run(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    run("init", tmp_path / "state")
    with closing(Journal(open_state(tmp_path / "state").database)) as journal:
        journal.rounds.ask(RoundSettings())
    return tmp_path / "state"


@pytest.fixture
def read_only(state: Path) -> Iterator[Path]:
    """The folder, mounted for reading only."""
    mounts = (["mount", "--bind", state, state], ["mount", "-o", "remount,bind,ro", state])
    for command in mounts:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a folder read-only takes root")
    yield state
    subprocess.run(["umount", state], check=True)


def test_status_reads_a_read_only_state(read_only, capsys):
    run("status", read_only)
    shown = capsys.readouterr().out
    assert "server: not running" in shown
    assert "round-001: asked" in shown


def test_serve_refuses_a_read_only_state(read_only):
    with pytest.raises(StateError, match="cannot be written: give this user the permission"):
        run("serve", read_only)


def test_what_was_written_last_is_read_from_a_copy(state, monkeypatch, capsys):
    """Also what is still in SQLite's log beside the database, where a killed server left it."""
    real, kept = Journal, Journal(open_state(state).database)
    kept.notes.add("round-001", "last")

    def journal(file: Path) -> Journal:
        if file.parent == state:
            raise StateError("server.db cannot be used (disk full)")
        return real(file)

    monkeypatch.setattr(reading, "Journal", journal)
    with reading.reading_journal(open_state(state, only_read=True)) as copy:
        assert [text for _, _, text in copy.notes.of("round-001")] == ["last"]
    kept.close()


def test_a_journal_that_cannot_be_copied_is_named_itself(state, monkeypatch):
    open_state(state).database.write_bytes(b"not a database, but long enough to be none" * 100)
    with pytest.raises(StateError, match=r"state/server\.db cannot be used"):
        run("status", state)


def test_status_says_why_a_server_that_runs_does_not_get_on(state, capsys):
    opened = open_state(state)
    with locked(opened):
        Pause(opened).because("models: the disk is full; make room")
        run("status", state)
        assert "paused: models: the disk is full; make room" in capsys.readouterr().out
    run("status", state)
    assert "paused" not in capsys.readouterr().out  # no server, no pause


def test_status_says_which_model_is_not_the_one_that_was_published(state, capsys):
    opened = open_state(state)
    folder = opened.artefacts.model("round-001")
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"round": "round-003", "concepts": []}))
    with closing(Journal(opened.database)) as journal:
        journal.rounds.advance("round-001", PUBLISHED)
    run("status", state)
    assert f"{folder} is not the model that round-001 published" in capsys.readouterr().out


def test_a_lock_that_can_only_be_read_says_whether_it_is_held(state):
    opened = open_state(state)
    with locked(opened):
        from mos_server.state.folder import _is_held

        assert _is_held(state / "lock") is True
    assert _is_held(state / "lock") is False
    assert is_served(opened) is False


def test_a_state_that_was_moved_while_it_was_stopped_is_as_before(state, capsys):
    shutil.move(state, state.with_name("moved"))
    run("status", state.with_name("moved"))
    assert "round-001: asked" in capsys.readouterr().out
