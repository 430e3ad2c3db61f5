"""A model that its operator wants to look at first is made and scored, and published by command."""

from __future__ import annotations

import pytest

from mos_common.errors import RequestError, StateError
from mos_common.signing import verify_model
from mos_server.cli import models as commands
from mos_server.round.exchange import WithOwn
from mos_server.round.holding import held_back, publish_held
from mos_server.state.concepts import withdraw
from mos_server.state.records import HELD_BACK, PUBLISHED, SCORING
from server.round.conftest import SCORES, Federation


def publish(federation: Federation, name: str | None = None):
    return publish_held(federation.state, federation.journal, name, lambda: federation.base)


def test_a_round_to_be_reviewed_is_held_back_and_published_by_its_operator(federation: Federation):
    name = federation.run(federation.machine("alice"), review=True)
    assert federation.status(name) == HELD_BACK
    assert federation.journal.rounds.get(name).reason == "its operator looks at it first"
    assert federation.journal.rounds.latest_published() is None
    round_, folder = publish(federation)
    assert (round_.status, round_.reason) == (PUBLISHED, "")
    verify_model(folder, federation.state.pki.signing_key_pem())
    assert [concept.identity for concept in federation.model(name).manifest.concepts] == [SCORES]
    assert not federation.state.artefacts.candidate(name).exists()
    whats = [entry["what"] for entry in federation.journal.audit.entries()]
    assert whats[-2:] == ["model signed", "round published"]


def test_a_model_is_held_back_while_it_is_scored(federation: Federation):
    def hold_back():
        commands.hold_back(federation.state.path)
        return SCORES

    name = federation.run(federation.machine("alice", scores=[hold_back]))
    assert federation.status(name) == HELD_BACK
    publish(federation, name)
    assert federation.status(name) == PUBLISHED


def test_own_changes_are_published_with_a_model_that_was_held_back(federation: Federation):
    machine = federation.machine("alice", WithOwn(federation.file(name="<cat>")))
    name = federation.run(machine, review=True, publishes="own")
    publish(federation)
    assert [concept.own is not None for concept in federation.model(name).manifest.concepts] == [True]


def test_only_the_newest_model_that_is_held_back_and_whole_is_published(federation: Federation):
    with pytest.raises(RequestError, match="no round is held back"):
        publish(federation)
    with pytest.raises(RequestError, match="there is nothing to hold back"):
        federation.journal.rounds.hold_back()
    machine = federation.machine("alice")
    first = federation.run(machine, review=True)
    second = federation.run(machine)
    assert federation.status(second) == PUBLISHED
    with pytest.raises(RequestError, match=f"{second} was published since"):
        held_back(federation.journal, first)
    with pytest.raises(RequestError, match="is published: only a round that is held back"):
        held_back(federation.journal, second)


def test_a_candidate_of_which_a_concept_was_withdrawn_is_not_published(federation: Federation):
    name = federation.run(*(federation.machine(each) for each in ("alice", "bob")), wait=2, review=True)
    withdraw(federation.state, federation.journal, "<alice/alices-cat>")
    with pytest.raises(StateError, match="not made of the concepts that are in round-001 now"):
        publish(federation, name)
    assert federation.status(name) == HELD_BACK
    assert not federation.state.artefacts.model(name).exists()


def test_holding_back_survives_a_kill_at_any_step(federation: Federation, network):
    machine = federation.machine("alice")
    name = federation.ask()
    with federation.killed_at(status=SCORING):
        federation.go_on(name, network(machine))
    federation.journal.rounds.hold_back()
    federation.go_on(name, network(machine))
    assert federation.status(name) == HELD_BACK
