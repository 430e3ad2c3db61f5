"""The runner of rounds outlives what goes wrong around it: it pauses, says why, and goes on."""

from __future__ import annotations

import errno
import logging
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from mos_common.errors import NetworkError, StateError
from mos_server.network.superlink import Task
from mos_server.round import runner as running
from mos_server.round.attribution import CONCEPT, Attribution, is_attributed
from mos_server.round.runner import RoundRunner
from mos_server.state import pause as pausing
from mos_server.state.folder import ServerConfig, State, create_state, locked
from mos_server.state.journal import Journal
from mos_server.state.pause import Pause, Unstored, pause_of
from mos_server.state.records import FAILED, RoundSettings


class Link:
    """Stands for Flower's SuperLink, with a fault at each start until they are used up."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        self.started = 0

    def start_run(self) -> Task:
        if self.faults:
            raise self.faults.pop(0)
        self.started += 1
        return Task(1, "127.0.0.1:1", "token")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = create_state(tmp_path / "state", ServerConfig(base="tiny", base_fingerprint="ab" * 32))
    with locked(made):
        yield made


@pytest.fixture
def journal(state: State) -> Iterator[Journal]:
    with closing(Journal(state.database)) as opened:
        opened.rounds.ask(RoundSettings())
        yield opened


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_PAUSES_S", (0.01, 0.02))


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Run these lines instead of the process of a round."""
    real = running.subprocess.Popen

    def instead(code: str) -> None:
        def popen(_command: object, **options: object) -> object:
            return real([sys.executable, "-c", code], **options)

        monkeypatch.setattr(running.subprocess, "Popen", popen)

    return instead


def steps(runner: RoundRunner, true: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not true():
        runner.step()
        assert time.monotonic() < until
        time.sleep(0.02)


FAULTS = [
    NetworkError("Flower did not start the round"),
    StateError("server.db cannot be used"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EMFILE, "Too many open files"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full")),
    sqlite3.DatabaseError("database disk image is malformed"),
    MemoryError(),
    KeyError("a mistake of ours"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_whatever_goes_wrong_pauses_the_round_and_is_said_once(state, journal, child, caplog, fault):
    """Six failures in a row, then the process starts."""
    child("input()")
    runner = RoundRunner(state, journal, Link(*[fault] * 6), Pause(state), Unstored(state))
    runner.step()
    assert pause_of(state)
    with caplog.at_level(logging.ERROR):
        steps(runner, lambda: runner.superlink.started)
    assert pause_of(state) == ""
    assert len([record for record in caplog.records if "paused and go on" in record.message]) <= 1
    notes = [text for _, _, text in journal.notes.of("round-001") if text.startswith("paused")]
    assert len(notes) <= 1
    runner.stop()


def test_a_mistake_of_ours_is_logged_with_its_trace(state, journal, caplog):
    runner = RoundRunner(state, journal, Link(*[KeyError("layer")] * 3), Pause(state), Unstored(state))
    for _ in range(3):
        runner.step()
        time.sleep(0.03)
    assert caplog.text.count("Traceback") == 1
    assert pause_of(state) == "KeyError: 'layer'"


def test_a_process_that_pauses_is_started_again_and_says_why(state, journal, child):
    child("import os; input(); os.write(int(os.environ['MOS_WHY']), b'the disk is full')")
    runner = RoundRunner(state, journal, Link(), Pause(state), Unstored(state))
    steps(runner, lambda: runner.superlink.started == 5)  # more often than a process may die
    assert journal.rounds.get("round-001").unfinished
    steps(runner, lambda: pause_of(state) == "the disk is full")
    runner.stop()


@pytest.mark.parametrize("said", [True, False], ids=["it said why", "it died"])
def test_who_was_being_read_counts_only_if_the_process_died(state, journal, child, said):
    """A disk that took nothing any more left the line behind, and the process said so."""
    says = (
        "import os; os.write(int(os.environ['MOS_WHY']), b'the disk is read-only')" if said else "raise SystemExit(3)"
    )
    child(f"input(); {says}")
    attribution = Attribution(state.path, "round-001")
    attribution._write(f"{CONCEPT} alice")
    runner = RoundRunner(state, journal, Link(), Pause(state), Unstored(state))
    steps(runner, lambda: runner.superlink.started == 2)
    runner.stop()
    assert is_attributed(state.path, "round-001") != said
    assert Attribution(state.path, "round-001").fatal(CONCEPT) == ([] if said else ["alice"])


def test_a_round_whose_answers_cannot_be_stored_is_paused_until_there_is_room(
    state, journal, child, caplog, monkeypatch
):
    """Said once, however often they are refused and for whatever reason; its process goes on."""
    child("input(); input()")
    full, unstored = [True], Unstored(state)

    def check_room(_state: State) -> None:
        if full:
            raise StateError("the disk is full")

    monkeypatch.setattr(pausing, "_CALM_S", 0.05)
    runner = RoundRunner(state, journal, Link(), Pause(state), unstored)
    runner.step()
    process = runner._process
    monkeypatch.setattr(pausing, "check_room", check_room)
    with caplog.at_level(logging.ERROR):
        for reason in ("piece-1 cannot be stored", "piece-2 cannot be stored"):
            unstored.report(reason)
            for _ in range(5):
                runner.step()
                time.sleep(0.02)
        assert pause_of(state) == "piece-1 cannot be stored"
        full.clear()
        steps(runner, lambda: not pause_of(state))
    assert [record.message.partition(":")[0].partition(" after")[0] for record in caplog.records] == [
        "rounds are paused and go on by themselves",
        "rounds go on",
    ]
    assert runner._process is process
    assert process.poll() is None
    runner.stop()


def test_a_process_that_dies_three_times_fails_the_round(state, journal, child):
    child("raise SystemExit(3)")
    runner = RoundRunner(state, journal, Link(), Pause(state), Unstored(state))
    steps(runner, lambda: not journal.rounds.get("round-001").unfinished)
    round_ = journal.rounds.get("round-001")
    assert round_.status == FAILED
    assert "its process ended 3 times, the last time with code 3" in round_.reason


def test_a_process_that_dies_on_a_full_disk_has_not_died(state, journal, child, monkeypatch):
    """Its death is not counted; when there is room it is started again."""
    full = [True] * 5

    def check_room(_state: State) -> None:
        if full and runner.superlink.started:
            full.pop()
            raise StateError("the disk is full")

    child("raise SystemExit(3)")
    monkeypatch.setattr(running, "check_room", check_room)
    runner = RoundRunner(state, journal, Link(), Pause(state), Unstored(state))
    steps(runner, lambda: not full)
    assert journal.rounds.get("round-001").unfinished
    runner.stop()


def test_the_process_ends_when_its_server_does(state, journal, child):
    """The end of standard input is the end of the server, however that came."""
    child(
        "import sys; from mos_server.round.process import end_with_server\n"
        "sys.stdin.readline(); end_with_server()\n"
        "import time; print('up', flush=True); time.sleep(600)"
    )
    runner = RoundRunner(state, journal, Link(), Pause(state), Unstored(state))
    runner.step()
    log = state.log / "round-001.log"
    steps(runner, lambda: "up" in log.read_text())
    runner._process.stdin.close()  # what the system does to the pipes of a process that ends
    assert runner._process.wait(20) == -9


def test_one_process_works_on_a_round_at_a_time(state, monkeypatch):
    from mos_server.round import process

    monkeypatch.setattr(process, "_EARLIER_ENDS_WITHIN_S", 0.1)
    with process.only_process(state), pytest.raises(StateError, match="earlier process"), process.only_process(state):
        pass
