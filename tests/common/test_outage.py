"""A loop that waits says once what is away, and once that it is back."""

from __future__ import annotations

import pytest

from mos_common import outage
from mos_common.outage import Outage, in_words


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds; tests move it."""
    now = [1000.0]
    monkeypatch.setattr(outage.time, "monotonic", lambda: now[0])
    return now


def test_trouble_is_said_once_and_again_when_it_is_over(clock):
    said: list[str] = []
    away = Outage(said.append)
    assert [away.report("the port is closed") for _ in range(3)] == [True, False, False]
    clock[0] += 130
    away.over("the port is open")
    away.over("the port is open")
    assert len(said) == 2
    assert said[0].startswith("the port is closed (since ")
    assert said[1] == "the port is open after 2 min"


def test_another_cause_is_news_and_so_is_the_next_outage(clock):
    said: list[str] = []
    away = Outage(said.append)
    for trouble in ("closed", "closed", "no such name", "no such name"):
        away.report(trouble)
    away.over("open")
    away.report("closed")
    assert [line.split(" (")[0] for line in said] == ["closed", "no such name", "open after 0 s", "closed"]


def test_what_is_over_within_its_patience_is_not_mentioned(clock):
    said: list[str] = []
    away = Outage(said.append, patience_s=60)
    away.report("starting")
    clock[0] += 59
    away.report("starting")
    away.over("started")
    assert said == []
    away.report("starting")
    clock[0] += 61
    away.report("starting")
    away.over("started")
    assert [line.split(" (")[0] for line in said] == ["starting", "started after 61 s"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (89, "89 s"),
        (120, "2 min"),
        (3600 * 2, "2 h"),
        (3600 * 3 + 300, "3 h 5 min"),
        (86400 * 4, "4 days"),
    ],
)
def test_a_duration_in_words(seconds, words):
    assert in_words(seconds) == words
