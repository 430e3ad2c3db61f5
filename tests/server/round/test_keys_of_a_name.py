"""Concepts belong to names: what several keys of one name may send."""

from __future__ import annotations

import pytest

from mos_server.round.intake import take_upload
from mos_server.state.concepts import withdraw


@pytest.fixture
def alices(federation):
    """Two keys of alice, as the journal has them."""
    machines = [federation.machine("alice") for _ in range(2)]
    people = {each.key: each for each in federation.journal.participants.all()}
    return [people[machine.key] for machine in machines]


@pytest.fixture
def send(federation):
    """Return a function that takes an upload into a round, or keeps it for the next one."""

    def sent(participant, data: bytes, round_id: str | None = None):
        return take_upload(federation.state, federation.journal, federation.base, participant, data, round_id)

    return sent


def test_the_first_key_to_send_a_concept_stands_and_the_other_is_refused_with_both_named(federation, alices, send):
    round_id = federation.ask()
    first = send(alices[0], federation.file(name="<cat>"), round_id)
    second = send(alices[1], federation.file(name="<cat>", seed=7), round_id)
    assert first.refused is None
    assert f"sent by key {alices[0].key[:12]}; this is key {alices[1].key[:12]}" in second.refused
    assert send(alices[1], federation.file(name="<dog>"), round_id).refused is None, "two keys, two concepts"
    assert [upload.token for upload in federation.admitted(round_id)] == ["<alice/cat>", "<alice/dog>"]


def test_of_two_that_were_late_the_newer_is_in_the_next_round(federation, alices, send):
    for participant, seed in zip(alices, (1, 2), strict=True):
        send(participant, federation.file(name="<cat>", seed=seed))
    (kept,) = federation.journal.uploads.adopt_late(federation.ask())
    assert kept.key == alices[1].key


def test_what_was_withdrawn_comes_back_by_no_key_of_its_name(federation, alices, send):
    data, round_id = federation.file(name="<cat>"), federation.ask()
    assert send(alices[0], data, round_id).refused is None
    withdraw(federation.state, federation.journal, "<alice/cat>")
    for participant in alices:
        assert "was withdrawn" in send(participant, data, round_id).refused
