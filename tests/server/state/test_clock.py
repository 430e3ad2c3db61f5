"""A wall clock that steps neither ends a round nor keeps it waiting."""

from __future__ import annotations

import time

import pytest

from mos_server.state import clock
from mos_server.state.journal import Journal
from mos_server.state.records import RoundSettings


@pytest.fixture
def asked(place):
    journal = Journal(place)
    yield journal.rounds.ask(RoundSettings(deadline_s=300.0))
    journal.close()


@pytest.mark.parametrize("step_s", [600.0, -600.0, 86400.0, -86400.0])
def test_a_step_leaves_as_much_time_until_the_deadline_as_before(asked, monkeypatch, step_s):
    if clock._boot() is None:
        pytest.skip("this system does not name its boots")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step_s)
    assert 290 < asked.deadline - time.time() <= 300


def test_after_a_restart_of_the_machine_the_wall_clock_counts(asked, monkeypatch):
    monkeypatch.setattr(clock, "_boot", lambda: "another boot")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 100)
    assert 190 < asked.deadline - time.time() <= 200


def test_a_clock_that_went_back_past_the_beginning_gives_no_more_than_the_whole_time(asked, monkeypatch):
    monkeypatch.setattr(clock, "_boot", lambda: None)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert asked.deadline == 300
