"""Nobody holds a round up: share of those asked, grace after an answer, time for scores."""

from __future__ import annotations

import time

import pytest

from mos_common.errors import RequestError
from mos_server.round.follow import describe_round
from mos_server.round.waiting import describe_waited_for, duration, have_enough
from mos_server.state.records import COLLECTING, PUBLISHED, SCORING, RoundSettings


def test_a_silent_participant_costs_the_round_its_grace_and_not_its_deadline(federation):
    silent = federation.machine("mallory", None)
    name = federation.run(federation.machine("alice"), federation.machine("bob"), silent, grace_s=1.0)
    assert federation.tokens(name) == ["<alice/alices-cat>", "<bob/bobs-cat>"]
    notes = federation.notes(name)
    assert notes.count("going on without mallory: no answer for 1s (--grace)") == 1
    assert [text for text in notes if text.startswith("enough have answered: waiting for mallory until ")]


def test_a_participant_that_never_scores_costs_the_round_its_grace(federation):
    silent = federation.machine("mallory", scores=[None])
    name = federation.run(federation.machine("alice"), silent, wait=2, grace_s=1.0)
    assert federation.status(name) == PUBLISHED
    assert len(federation.tokens(name)) == 2
    assert "going on without mallory: no answer for 1s (--grace)" in federation.notes(name)


def test_a_silent_participant_costs_no_more_than_the_scoring_time(federation):
    """Nobody has scored, so the grace does not count; the scoring time does."""
    name = federation.run(federation.machine("alice", scores=[None]), scoring_s=1.0)
    assert federation.status(name) == PUBLISHED
    assert [text for text in federation.notes(name) if text.startswith("the candidate is being scored, until ")]


def test_a_share_that_has_not_answered_is_waited_for_until_the_deadline(federation):
    machines = [federation.machine("alice"), federation.machine("bob", None), federation.machine("carol", None)]
    name = federation.run(*machines, grace_s=1.0, deadline_s=4.0)
    assert federation.tokens(name) == ["<alice/alices-cat>"]
    assert not [text for text in federation.notes(name) if "--grace" in text]


def test_too_few_concepts_are_waited_for_though_the_grace_is_over(federation):
    name = federation.run(federation.machine("alice"), federation.machine("bob", None), wait=2, grace_s=1, deadline_s=3)
    assert "the deadline has come with 1 of 2 concepts: going on with these" in federation.notes(name)


def test_an_answer_begins_the_grace_anew(federation, network):
    """bob answers when the grace is half over; mallory is then waited for all of it again."""
    alice, bob, mallory = (federation.machine("alice"), federation.machine("bob", None), federation.machine("m", None))
    everybody = network(alice, bob, mallory)
    answer, began, answered = everybody.answer, time.monotonic(), list[float]()

    def late(question_id: str):
        if question_id == "question-1" and not answered and time.monotonic() - began > 1.5:
            answered.append(time.monotonic())
            return federation.file(name="<bobs-cat>")
        return answer(question_id)

    everybody.answer = late
    name = federation.ask(share=0.3, grace_s=3.0)
    federation.go_on(name, everybody)
    assert len(federation.tokens(name)) == 2
    fusing = next(at for _, at, text in federation.journal.notes.of(name) if text.startswith("going on without m:"))
    assert fusing - time.time() + time.monotonic() - answered[0] >= 2.9


def test_somebody_who_is_lost_three_times_is_not_waited_for(federation):
    assert have_enough(RoundSettings(share=1.0), answered=2, waited_for=0)
    assert not have_enough(RoundSettings(share=1.0), answered=2, waited_for=1)


@pytest.mark.parametrize(
    ("share", "answered", "silent", "enough"),
    [(0.5, 1, 1, True), (0.5, 1, 2, False), (0.8, 4, 1, True), (0.8, 3, 1, False), (0.01, 0, 5, False)],
)
def test_the_share_is_of_those_who_answered_and_those_who_are_waited_for(share, answered, silent, enough):
    assert have_enough(RoundSettings(share=share), answered, silent) is enough


@pytest.mark.parametrize(
    "settings", [{"share": 0.0}, {"share": 1.1}, {"share": float("nan")}, {"grace_s": 0}, {"scoring_s": 0.5}]
)
def test_a_wait_without_sense_is_refused_by_its_flag(settings):
    (name,) = settings
    with pytest.raises(RequestError, match=f"--{name.removesuffix('_s')}"):
        RoundSettings(**settings)


def test_status_says_what_is_waited_for_and_until_when(federation):
    name = federation.ask(wait=1, grace_s=600.0, deadline_s=7200.0, share=0.8, scoring_s=900.0)
    rounds, alice, bob = federation.journal.rounds, federation.machine("alice"), federation.machine("bob")
    rounds.advance(name, COLLECTING)
    for machine in (alice, bob):
        rounds.set_activity(name, machine.key, "tuning", attempts=1)
    described = "\n".join(describe_round(federation.journal, rounds.get(name)))
    assert "at least 1 concept, until " in described
    assert "once 80% of those asked have answered, until 10m after the last answer; for scores 15m" in described
    (line,) = describe_waited_for(federation.journal, rounds.get(name))
    deadline = time.strftime("%Y-%m-%d %H:%M", time.localtime(rounds.get(name).asked + 7200))
    assert line.startswith(f"waiting for alice, bob, until {deadline}")


def test_status_says_that_the_grace_runs(federation):
    """One of two has answered, so the other is waited for until ten minutes after that."""
    alice, bob = federation.machine("alice"), federation.machine("bob", None)
    with federation.killed_at(note="enough have answered"):
        federation.run(alice, bob, grace_s=600.0)
    (line,) = describe_waited_for(federation.journal, federation.journal.rounds.get("round-001"))
    (upload,) = federation.admitted("round-001")
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(upload.received + 600))
    assert line == f"waiting for bob, until {until}"


def test_status_says_whose_scores_are_waited_for(federation):
    alice, bob = federation.machine("alice"), federation.machine("bob", scores=[None])
    with federation.killed_at(note="enough have answered"):
        federation.run(alice, bob, wait=2, scoring_s=900.0, grace_s=600.0)
    round_ = federation.journal.rounds.get("round-001")
    assert round_.status == SCORING
    (line,) = describe_waited_for(federation.journal, round_)
    assert line.startswith("waiting for bob, until ")


def test_the_clock_of_the_machine_may_be_set_while_a_round_waits(federation, monkeypatch):
    """Two hours forward: neither the deadline, an hour away, nor the end of the grace has come."""
    real = time.time
    bob = federation.machine("bob", None)

    def the_clock_is_set() -> bytes:
        monkeypatch.setattr(time, "time", lambda: real() + 7200.0)
        return federation.file(name="<cat>")

    began = time.monotonic()
    federation.run(federation.machine("alice", the_clock_is_set), bob, deadline_s=3600.0, grace_s=2.0)
    assert time.monotonic() - began >= 2.0
    assert "going on without bob: no answer for 2s (--grace)" in federation.notes("round-001")


@pytest.mark.parametrize(("seconds", "text"), [(45.0, "45s"), (600.0, "10m"), (7200.0, "2h"), (90.0, "90s")])
def test_a_duration_is_said_as_the_flags_take_it(seconds, text):
    assert duration(seconds) == text
