"""Commands on a state folder with a damaged part: those that do not need the part still work."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mos_common.errors import NetworkError, RequestError, StateError
from mos_server.cli.main import app
from mos_server.round import follow
from mos_server.state.folder import is_served, keep_fusion, open_state
from mos_server.state.journal import Journal
from mos_server.state.records import ASKED, CANCELLED, PUBLISHED, RoundSettings

DAMAGE = {
    "not JSON": lambda config: config.write_text("{"),
    "not text": lambda config: config.write_bytes(b"\xff\xfe\x00"),
    "empty": lambda config: config.write_bytes(b""),
    "lost": lambda config: config.unlink(),
    "a folder": lambda config: (config.unlink(), config.mkdir()),
    "of a newer release": lambda config: config.write_text(config.read_text().replace("{", '{"colour":"red",', 1)),
    "fusion of another shape": lambda config: config.write_text(
        config.read_text().replace('"fusion":{}', '"fusion":{"settings":["x"]}')
    ),
}


def run(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with one participant invited and one round asked for."""
    run("init", tmp_path / "state")
    run("invite", tmp_path / "state", "alice", "--out", tmp_path / "alice.kit")
    with closing(Journal(open_state(tmp_path / "state").database)) as journal:
        journal.rounds.ask(RoundSettings())
    return tmp_path / "state"


@pytest.fixture(params=DAMAGE)
def damaged(state: Path, request) -> Path:
    DAMAGE[request.param](state / "config.json")
    return state


def status_of(state: Path, round_id: str) -> str:
    with closing(Journal(open_state(state).database)) as journal:
        return journal.rounds.get(round_id).status


def test_cancelling_needs_no_config(damaged, capsys):
    run("round", damaged, "--cancel")
    assert status_of(damaged, "round-001") == CANCELLED
    assert "round-001: cancelled" in capsys.readouterr().out


def test_cancelling_does_not_read_the_flags_of_a_new_round(state):
    """ "End it: add --cancel" is advice about the command as it was typed."""
    run("round", state, "--set", "preserv=3", "--weight", "heavy", "--deadline", "soon", "--wait", "0", "--cancel")
    assert status_of(state, "round-001") == CANCELLED


def test_a_running_round_is_followed_without_the_config(damaged, monkeypatch):
    monkeypatch.setattr(follow, "_SERVER_STARTS_WITHIN_S", -1.0)
    with pytest.raises(NetworkError, match="no server is running"):
        run("round", damaged)
    assert status_of(damaged, "round-001") == ASKED


def test_status_shows_everything_but_the_damaged_config(damaged, capsys):
    run("status", damaged)
    shown = capsys.readouterr().out
    assert "server: not running" in shown
    assert "config.json cannot be used (" in shown and "restore it from a backup" in shown
    assert "alice: invited" in shown
    assert "round-001: asked" in shown


def test_concepts_and_bar_need_no_config(damaged, capsys):
    run("concepts", damaged)
    assert "no concepts are kept here" in capsys.readouterr().out
    run("bar", damaged, "alice")
    assert "alice: barred, 0 keys; 1 unused kit" in capsys.readouterr().out
    with pytest.raises(RequestError, match="nobody"):  # the answer of a whole folder too
        run("bar", damaged, "nobody")


@pytest.mark.parametrize("words", [["settings"], ["invite"]], ids=str)
def test_commands_that_need_the_config_name_it(damaged, tmp_path, words):
    more = ["bob", "--out", tmp_path / "bob.kit"] if words == ["invite"] else []
    with pytest.raises(StateError, match=r"config\.json cannot be used \(.*\): restore it from a backup"):
        run(*words, damaged, *more)
    assert not (tmp_path / "bob.kit").exists()


@pytest.mark.parametrize("values", ['{"warp": 9}', '{"wait": "many"}', "[1]", '{"fusion": {"weights": "heavy"}}'])
def test_rounds_whose_settings_are_unreadable_block_no_other(state, values, capsys):
    """Of a round that has ended, of one that is running, and of the newest published one."""
    with closing(sqlite3.connect(open_state(state).database)) as journal, journal:
        journal.execute("UPDATE rounds SET settings = ?", [values])
    run("status", state)
    shown = capsys.readouterr().out
    assert "round-001: asked" in shown
    assert "round-001 was asked for with warp" in shown or "the settings of round-001 cannot be used" in shown
    run("round", state, "--cancel")
    with closing(Journal(open_state(state).database)) as journal:
        second = journal.rounds.ask(RoundSettings())
        journal.rounds.advance(second.id, PUBLISHED)
        assert journal.rounds.latest_published() == journal.rounds.get(second.id)
    run("concepts", state)


@pytest.mark.parametrize("kept", [{"settings": {"colour": "red"}}, {"method": "magic"}], ids=str)
def test_another_method_replaces_kept_settings_that_this_version_does_not_know(state, kept):
    keep_fusion(open_state(state), kept)
    with pytest.raises(RequestError, match=r"colour|magic"):
        run("settings", state)
    run("settings", state, "--method", "sum", "--set", "sum_weight=0.4")
    assert open_state(state).config.fusion == {"method": "sum", "settings": {"sum_weight": 0.4}}


def test_a_lock_that_cannot_be_opened_leaves_open_whether_a_server_runs(state, capsys):
    """Such as that of a server that another user has started."""
    (state / "lock").unlink(missing_ok=True)
    (state / "lock").mkdir()
    assert is_served(open_state(state)) is None
    run("status", state)
    shown = capsys.readouterr().out
    assert f"server: may be running: its lock, {state}/lock, belongs to another user" in shown
    assert "round-001: asked" in shown
    run("round", state, "--cancel")
    assert status_of(state, "round-001") == CANCELLED
