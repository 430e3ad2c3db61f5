"""Settings of fusion on their way from a command line to the federation and its rounds."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from mos_common.errors import NetworkError, RequestError
from mos_server.cli.main import app
from mos_server.round import follow
from mos_server.state.folder import open_state
from mos_server.state.journal import Journal
from mos_server.state.records import RoundSettings


def run(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    run("init", tmp_path / "state", "--set", "preserve=3", "--set", "contexts=V|photo of a V")
    return tmp_path / "state"


@pytest.fixture
def ask_round(state, monkeypatch):
    """Ask for a round that no server begins, cancel it, and return its fusion as journalled."""
    monkeypatch.setattr(follow, "_SERVER_STARTS_WITHIN_S", -1.0)

    def ask(*flags: str) -> dict:
        with pytest.raises(NetworkError):
            run("round", state, *flags)
        with closing(Journal(open_state(state).database)) as journal:
            fusion = journal.rounds.unfinished().settings.fusion
        run("round", state, "--cancel")
        return fusion

    return ask


def test_init_keeps_the_federation_s_settings(state):
    kept = {"settings": {"contexts": ["V", "photo of a V"], "preserve": 3.0}}
    assert open_state(state).config.fusion == kept
    assert json.loads((state / "config.json").read_bytes())["fusion"] == kept


def test_init_refuses_an_unknown_setting_before_anything_is_made(tmp_path):
    with pytest.raises(RequestError, match=r"method gradient: unknown setting 'preserv': did you mean preserve"):
        run("init", tmp_path / "state", "--set", "preserv=3")
    assert not (tmp_path / "state").exists()


def test_settings_lists_them_with_what_they_mean(state, capsys):
    run("settings", state)
    shown = capsys.readouterr().out
    for line in (
        "method=gradient",
        "preserve=3.0: μ",
        "contexts=V|photo of a V: prompts",
        "preset=identity: ",
        "ridge=none: λ",
        "workers=here",
    ):
        assert line in shown


def test_settings_changes_them_for_rounds_to_come(state, ask_round, capsys):
    before = open_state(state).config
    run(
        "settings", state, "--set", "ridge=0.1", "--set", "preserve=none", "--weight", "<alice/cat>=2", "--workers", "2"
    )
    assert (
        "gradient, preset identity, contexts=V|photo of a V, ridge=0.1, weight <alice/cat>=2, workers 2"
        in capsys.readouterr().out
    )
    kept = {
        "settings": {"contexts": ["V", "photo of a V"], "ridge": 0.1},
        "weights": {"<alice/cat>": 2.0},
        "workers": "2",
    }
    assert open_state(state).config == before.model_copy(update={"fusion": kept})
    assert ask_round() == kept


def test_a_round_puts_its_flags_over_the_federation_s_settings(state, ask_round):
    assert ask_round() == open_state(state).config.fusion
    assert ask_round("--preserve", "0.5", "--set", "cap=2", "--weight", "<bob/dog>=3", "--workers", "auto") == {
        "settings": {"cap": 2.0, "contexts": ["V", "photo of a V"], "preserve": 0.5},
        "weights": {"<bob/dog>": 3.0},
        "workers": "auto",
    }
    assert ask_round("--method", "sum", "--set", "sum_weight=0.4") == {"method": "sum", "settings": {"sum_weight": 0.4}}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--set", "preserv=3"), "method gradient.*did you mean preserve"),
        (("--method", "average", "--preserve", "3"), "method average: unknown setting 'preserve'"),
        (("--weight", "heavy"), "--weight heavy"),
        (("--workers", "many"), "--workers many"),
    ],
)
def test_a_round_that_could_not_be_fused_is_not_asked_for(state, flags, words):
    with pytest.raises(RequestError, match=words):
        run("round", state, *flags)
    with closing(Journal(open_state(state).database)) as journal:
        assert journal.rounds.all() == []


def test_status_says_with_what_rounds_are_and_were_fused(state, ask_round, capsys):
    ask_round("--set", "preserve=0.5")
    capsys.readouterr()
    run("status", state)
    shown = capsys.readouterr().out
    assert "fusion of rounds to come: gradient, preset identity, contexts=V|photo of a V, preserve=3 " in shown
    assert "  fusion: gradient, preset identity, contexts=V|photo of a V, preserve=0.5\n" in shown


def test_a_federation_and_a_round_of_before_there_were_settings_have_the_defaults(state, capsys):
    """config.json and the journal as an older version wrote them."""
    config = json.loads((state / "config.json").read_bytes())
    del config["fusion"]
    (state / "config.json").write_text(json.dumps(config))
    assert open_state(state).config.fusion == {}
    assert RoundSettings(**json.loads('{"wait": 2, "deadline_s": 60.0}')).fusion == {}
    run("status", state)
    assert "fusion of rounds to come: gradient, preset identity" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["init", "settings", "round", "fuse"])
def test_help_lists_the_settings(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    run(command, "--help")
    shown = capsys.readouterr().out
    assert "--set" in shown and "NAME=VALUE" in shown
    assert "preserve=none: μ" in shown and "faithful: sharpen 1" in shown
