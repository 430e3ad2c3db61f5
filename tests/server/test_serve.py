"""`mos-server serve` as a process, and the operator's commands."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mos_common.errors import FusionError, RequestError, StateError
from mos_common.kit import read_kit
from mos_server.cli import federation as commands
from mos_server.cli import people
from mos_server.cli.main import app
from mos_server.round import asking
from mos_server.round import follow as following
from mos_server.state.folder import ServerConfig, State, create_state, locked
from mos_server.state.journal import Journal
from mos_server.state.records import CANCELLED, FAILED, PUBLISHED, RoundSettings

COMMAND = [sys.executable, "-c", "from mos_server.cli.main import main; main()"]


@pytest.fixture
def state(tmp_path: Path) -> State:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    fleet, mos = (each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    config = ServerConfig(base="tiny", base_fingerprint="ab" * 32, fleet_port=fleet, mos_port=mos)
    return create_state(tmp_path / "state", config)


@pytest.fixture
def journal(state: State) -> Iterator[Journal]:
    journal = Journal(state.database)
    yield journal
    journal.close()


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_leaves_no_process_behind_and_its_round_unfinished(state: State, journal: Journal, ended_by: int):
    journal.rounds.ask(RoundSettings())
    with subprocess.Popen([*COMMAND, "serve", str(state.path)], stdout=subprocess.DEVNULL) as server:
        process = psutil.Process(server.pid)
        wait_until(process.children)
        children = process.children(recursive=True)
        started = time.monotonic()
        server.send_signal(ended_by)
        code = server.wait(20)
    assert time.monotonic() - started < 10  # about two seconds on a machine with nothing else to do
    assert code == (-9 if ended_by == signal.SIGKILL else 0)
    _, left = psutil.wait_procs(children, timeout=30)
    assert left == []
    assert journal.rounds.unfinished() is not None


def test_a_kit_says_how_to_reach_and_trust_the_server(state: State, tmp_path: Path):
    people.invite(state.path, "alice", tmp_path / "alice.kit", valid="2h")
    kit = read_kit(tmp_path / "alice.kit")
    assert kit.fleet == f"127.0.0.1:{state.config.fleet_port}"
    assert kit.base == state.config.base_fingerprint
    assert kit.ca == state.pki.authority_pem()
    assert 7000 < kit.expires.timestamp() - time.time() < 7200
    with pytest.raises(RequestError, match="already exists"):
        people.invite(state.path, "alice", tmp_path / "alice.kit", valid="2h")


@pytest.mark.parametrize("name", ["", "Alice", "alice/bob", "../alice", "<alice>", "a" * 40])
def test_a_participants_name_fits_into_a_token(state: State, tmp_path: Path, name: str):
    with pytest.raises(RequestError, match="participant name"):
        people.invite(state.path, name, tmp_path / "kit", valid="2h")
    assert not (tmp_path / "kit").exists()


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("30m", 1800), ("2h", 7200), ("1.5d", 129600)])
def test_durations_have_a_unit(text: str, seconds: float):
    assert asking.duration_s(text, "--deadline") == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "-1h", "0s", "2 h", "two hours"])
def test_what_is_not_a_duration_is_refused(text: str):
    with pytest.raises(RequestError, match="--deadline"):
        asking.duration_s(text, "--deadline")


def test_a_base_that_cannot_be_loaded_leaves_no_state(tmp_path: Path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(StateError, match="not empty"):
        commands.init(tmp_path)


def test_concepts_are_listed_or_withdrawn_and_nothing_else(state: State, capsys: pytest.CaptureFixture[str]):
    commands.concepts(state.path)
    assert "no concepts are kept here" in capsys.readouterr().out
    for action, name in (("erase", "<cat>"), ("withdraw", None)):
        with pytest.raises(RequestError, match="expected: mos-server concepts STATE"):
            commands.concepts(state.path, action, name)


def test_a_round_is_followed_to_its_end(state: State, journal: Journal, capsys: pytest.CaptureFixture[str]):
    round_ = journal.rounds.ask(RoundSettings())
    journal.notes.add(round_.id, "all is well")
    journal.rounds.advance(round_.id, PUBLISHED)
    assert following.follow_round(state, journal, round_.id).status == PUBLISHED
    assert "all is well" in capsys.readouterr().out


@pytest.mark.parametrize("status", [FAILED, CANCELLED])
def test_a_round_that_was_not_published_is_an_error_with_its_reason(state: State, journal: Journal, status: str):
    round_ = journal.rounds.ask(RoundSettings())
    journal.rounds.advance(round_.id, status, "because")
    with pytest.raises(FusionError, match=f"{status}, because"):
        following.follow_round(state, journal, round_.id)


def test_leaving_a_round_does_not_end_it(
    state: State, journal: Journal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following, "follow_round", interrupt)
    with pytest.raises(KeyboardInterrupt):
        commands.round_(state.path)
    assert "round-001 goes on in the server" in capsys.readouterr().out
    assert journal.rounds.unfinished() is not None
    commands.round_(state.path, cancel=True)
    assert journal.rounds.get("round-001").status == CANCELLED
    with pytest.raises(RequestError, match="nothing to cancel"):
        commands.round_(state.path, cancel=True)


def test_status_tells_a_newcomer_what_to_do_next(state: State, capsys: pytest.CaptureFixture[str]):
    with locked(state):
        commands.status(state.path)
    shown = capsys.readouterr().out
    assert "server: running" in shown
    assert "none has enrolled yet" in shown
    assert "start one: mos-server round" in shown


def test_an_operator_has_a_command_for_each_part_of_the_job():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names == {
        *("init", "invite", "bar", "serve", "round", "settings", "status", "concepts", "fuse", "export"),
        *("rotate", "audit", "prune", "forget", "hold-back", "publish", "sheet"),
    }
