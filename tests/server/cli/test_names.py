"""What `invite`, `bar` and `rotate` say to the operator, and what they refuse."""

from __future__ import annotations

from contextlib import closing

import pytest

from mos_common.kit import read_kit
from mos_common.shell import run
from mos_server.cli.main import app
from mos_server.state.folder import ServerConfig, State, create_state, open_state
from mos_server.state.journal import Journal


@pytest.fixture
def state(tmp_path) -> State:
    return create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32))


@pytest.fixture
def command(state, tmp_path, monkeypatch, capsys):
    """Return a function that runs a command on the state: what it printed."""
    monkeypatch.chdir(tmp_path)

    def typed(name: str, *words: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["mos-server", name, str(state.path), *words])
        ended = 0
        try:
            run(app)
        except SystemExit as stop:
            ended = int(stop.code or 0)
        printed = capsys.readouterr()
        assert ended == code, printed
        return printed.out + printed.err

    return typed


def admit(state: State, file: str, key: str) -> None:
    kit = read_kit(state.path.parent / file)
    with closing(Journal(state.database)) as journal:
        assert journal.participants.enrol(kit.token, key, b"pem") == kit.name


def test_a_second_kit_of_a_name_says_what_it_does(state, command):
    command("invite", "carol", "--out", "1.kit")
    admit(state, "1.kit", "a1" * 32)
    assert "carol has 1 key already: in a new state folder this kit adds another" in command(
        "invite", "carol", "--out", "2.kit"
    )


def test_barring_says_what_is_left_and_the_way_back_is_explicit(state, command):
    for file, key in (("1.kit", "a1" * 32), ("2.kit", "b2" * 32)):
        command("invite", "carol", "--out", file)
        admit(state, file, key)
    command("invite", "carol", "--out", "unused.kit")
    said = command("bar", "carol", "--key", "A1A1A1A1")
    assert "carol has 1 key left" in said
    assert "1 unused kit of carol can still be used" in said
    assert "carol: barred, 1 key; 1 unused kit of that name is void" in command("bar", "carol")
    refused = command("invite", "carol", "--out", "3.kit", code=2)
    assert "carol was barred on" in refused
    assert not (state.path.parent / "3.kit").exists()
    assert "the barred keys stay barred" in command("invite", "carol", "--again", "--out", "3.kit")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "choose one of --certificate, --authority and --signing-key"),
        (("--certificate", "--signing-key"), "one thing is rotated at a time"),
        (("--signing-key", "--finish"), "--finish goes with --authority"),
        (("--authority", "--host", "b.example.org"), "go with --certificate"),
        (("--authority", "--finish"), "no new authority is announced"),
    ],
)
def test_one_thing_is_rotated_at_a_time(command, flags, said):
    assert said in command("rotate", *flags, code=2)


def test_every_rotation_is_in_the_kits_that_follow(state, command):
    command("invite", "carol", "--out", "first.kit")
    for flags in (
        ("--signing-key",),
        ("--authority",),
        ("--authority", "--finish"),
        ("--certificate", "--host", "lan"),
    ):
        command("rotate", *flags)
    command("invite", "carol", "--out", "last.kit")
    first, last = (read_kit(state.path.parent / file) for file in ("first.kit", "last.kit"))
    assert first.anchors.joined(last.anchors) == last.anchors
    assert len(last.statements) == 4
    assert last.mos == "lan:9093"
    assert open_state(state.path).config.also_names == ("127.0.0.1",)


def test_finishing_names_who_was_away(state, command):
    command("invite", "carol", "--out", "1.kit")
    admit(state, "1.kit", "a1" * 32)
    command("rotate", "--authority")
    assert f"carol (key {'a1' * 6}) has not been here since the announcement (last here: never)" in command(
        "rotate", "--authority", "--finish"
    )
