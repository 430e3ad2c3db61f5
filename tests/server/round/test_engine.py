"""A round without Flower: uploads, lost answers, late joiners, bad concepts, withdrawals."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from mos_common.concept_file import concept_from_bytes, concept_to_bytes
from mos_common.errors import FusionError
from mos_common.fused_model import NamedConcept
from mos_common.identity_scores import Identity
from mos_common.signing import verify_model
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.round.engine import RoundCancelledError
from mos_server.round.exchange import Lost, Unusable
from mos_server.round.follow import describe_round
from mos_server.state.concepts import withdraw
from mos_server.state.records import CANCELLED, HELD_BACK, PUBLISHED

SCORES = Identity(class_word=0.1, single=0.6, fused=0.5, ceiling=0.8)
LOST = Lost("error 5, node unavailable")


def test_the_engine_needs_neither_flower_nor_torch_to_be_imported():
    """What a round is can be read, and tested, without the network that carries it."""
    code = "import sys, mos_server.round.engine; print({'flwr', 'torch'} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_a_round_is_collected_fused_scored_signed_and_published(federation):
    machines = [federation.machine(name) for name in ("alice", "bob")]
    name = federation.run(*machines, wait=2)
    assert federation.status(name) == PUBLISHED
    verify_model(federation.state.artefacts.model(name), federation.state.pki.signing_key_pem())
    assert federation.tokens(name) == ["<alice/alices-cat>", "<bob/bobs-cat>"]
    assert {concept.identity for concept in federation.model(name).manifest.concepts} == {SCORES}
    assert not federation.state.artefacts.candidate(name).exists()
    assert [machine.asked for machine in machines] == [["concept", "scores"]] * 2


def test_what_is_published_is_what_fusing_the_files_by_hand_gives(federation):
    files = {"alice": federation.file(name="<cat>"), "bob": federation.file(name="<dog>")}
    name = federation.run(*(federation.machine(*each) for each in files.items()), wait=2)
    concepts = [NamedConcept(participant, concept_from_bytes(data)) for participant, data in files.items()]
    small = GradientSettings(steps=2, contexts=("V",), ordinary=("a",))
    by_hand = fuse(federation.base, concepts, small).changes
    published = federation.model(name).changes
    assert published.keys() == by_hand.keys()
    for layer, change in by_hand.items():
        torch.testing.assert_close(published[layer].change(), change.change().float(), rtol=1e-4, atol=1e-7)


def test_one_participant_is_a_round(federation):
    assert federation.tokens(federation.run(federation.machine("alice"))) == ["<alice/alices-cat>"]


def test_only_admitted_participants_are_asked(federation):
    stranger, revoked = federation.stranger("mallory"), federation.machine("bob")
    federation.journal.participants.revoke(revoked.key)
    name = federation.run(stranger, revoked, federation.machine("alice"))
    assert federation.tokens(name) == ["<alice/alices-cat>"]
    assert stranger.asked == revoked.asked == []


def test_a_lost_answer_is_asked_for_three_times_in_all(federation):
    alice, bob = federation.machine("alice", LOST, LOST, federation.file(name="<cat>")), federation.machine("bob", LOST)
    name = federation.run(alice, bob)
    assert federation.tokens(name) == ["<alice/cat>"]
    assert bob.asked == ["concept"] * 3
    assert {member.name: member.attempts for member in federation.journal.rounds.members(name)} == {
        "alice": 4,
        "bob": 3,
    }
    assert "bob: no answer (error 5, node unavailable), given up" in federation.notes(name)


def test_a_late_joiner_is_asked_while_others_are_waited_for(federation):
    name = federation.run(federation.machine("alice"), federation.machine("bob", online_after=5), wait=2)
    assert federation.tokens(name) == ["<alice/alices-cat>", "<bob/bobs-cat>"]


def test_a_bad_concept_leaves_the_round_with_its_reason_and_the_round_goes_on(federation):
    bad, broken = federation.machine("bob", federation.file()[:-7]), federation.machine("carol", b"\x80\x04pickle")
    name = federation.run(federation.machine("alice"), bad, broken)
    assert federation.tokens(name) == ["<alice/alices-cat>"]
    refusals = federation.refusals(name)
    assert refusals.keys() == {"bob", "carol"}
    assert bad.asked == broken.asked == ["concept"]
    assert f"bob: upload refused: {refusals['bob']}" in federation.notes(name)


def test_a_concept_with_nan_is_not_fused(federation):
    spoiled = federation.file(name="<cat>", words=0)[:-2] + b"\x00\x7e"  # the last number of the last tensor, in fp16
    name = federation.run(federation.machine("alice"), federation.machine("bob", spoiled))
    assert "NaN" in federation.refusals(name)["bob"]
    assert federation.tokens(name) == ["<alice/alices-cat>"]


def test_a_concept_of_another_base_is_not_fused(federation, sixteen, make_concept):
    foreign = concept_to_bytes(make_concept(sixteen, "<cat>"))
    name = federation.run(federation.machine("alice"), federation.machine("bob", foreign))
    assert sixteen.fingerprint[:8] in federation.refusals(name)["bob"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(Unusable("the upload is empty"), "the upload is empty"), (SCORES, "scores came where a concept was asked for")],
)
def test_an_answer_that_is_no_concept_is_refused_and_not_asked_for_again(federation, answer, reason):
    mallory = federation.machine("mallory", answer)
    name = federation.run(federation.machine("alice"), mallory)
    assert federation.refusals(name) == {"mallory": reason}
    assert mallory.asked == ["concept"]


def test_a_participant_uses_a_name_once_and_contents_count_once(federation):
    first, second = federation.file(name="<cat>", seed=1), federation.file(name="<cat>", seed=2)
    owners = [("alice", first), ("alice", second), ("bob", second), ("carol", second)]
    name = federation.run(*(federation.machine(*each) for each in owners))
    assert federation.tokens(name) == ["<alice/cat>", "<bob/cat>"]
    assert "another --concept name" in federation.refusals(name)["alice"]
    assert "the same contents" in federation.refusals(name)["carol"]


def test_what_comes_after_the_deadline_is_for_the_next_round(federation, network):
    alice, bob = federation.machine("alice"), federation.machine("bob", None)
    both = network(alice, bob)

    def scores_while_bob_arrives() -> Identity:
        both.answers["question-1"] = federation.file(name="<dog>")
        return SCORES

    alice.scores = [scores_while_bob_arrives]
    name = federation.ask(wait=2, deadline_s=1.0)
    federation.go_on(name, both)
    assert federation.tokens(name) == ["<alice/alices-cat>"]
    notes = "\n".join(federation.notes(name))
    assert "the deadline has come with 1 of 2 concepts" in notes
    assert "<bob/dog> arrived, " in notes
    assert "kept for the next round" in notes
    alice.scores = [SCORES]
    assert federation.tokens(federation.run(alice, bob, wait=2)) == ["<alice/alices-cat>", "<bob/dog>"]


def test_a_round_without_concepts_fails_and_says_what_to_do(federation):
    with pytest.raises(FusionError, match="mos-server status"):
        federation.run(deadline_s=1.0)


def test_identity_below_what_was_asked_holds_the_model_back(federation):
    low = Identity(class_word=0.1, single=0.6, fused=0.2, ceiling=0.8)
    name = federation.run(
        federation.machine("alice"), federation.machine("bob", scores=[low]), wait=2, min_identity=0.4
    )
    assert federation.status(name) == HELD_BACK
    assert "<bob/bobs-cat> has identity 0.200" in federation.journal.rounds.get(name).reason
    assert federation.state.artefacts.candidate(name).is_dir()
    assert not federation.state.artefacts.model(name).exists()
    assert federation.journal.rounds.latest_published() is None


def test_a_concept_that_lost_much_is_flagged_where_people_look(federation):
    """In the journal, in `mos-server status` and in the manifest; one that lost little is not."""
    much = Identity(class_word=0.1, single=0.62, fused=0.5, ceiling=0.8)
    little = Identity(class_word=0.1, single=0.55, fused=0.5, ceiling=0.8)
    machines = [federation.machine("alice", scores=[little]), federation.machine("bob", scores=[much])]
    name = federation.run(*machines, wait=2, flag_loss=0.1)
    assert federation.status(name) == PUBLISHED
    flags = [text for text in federation.notes(name) if "flagged" in text]
    assert flags == ["flagged: <bob/bobs-cat> lost 0.120 of its identity in fusion"]
    described = "\n".join(describe_round(federation.journal, federation.journal.rounds.get(name)))
    assert "identity class word 0.100, single 0.620, fused 0.500, ceiling 0.800, flagged: lost 0.120" in described
    manifest = json.loads((federation.state.artefacts.model(name) / "manifest.json").read_bytes())
    assert {each["participant"]: each["flagged"] for each in manifest["concepts"]} == {"alice": False, "bob": True}


@pytest.mark.parametrize("answer", [Unusable("identity fused is nan"), b"a concept file"])
def test_an_answer_that_is_no_score_is_not_believed_and_not_asked_for_again(federation, answer):
    bob = federation.machine("bob", scores=[answer])
    name = federation.run(federation.machine("alice"), bob, wait=2)
    assert [upload.identity for upload in federation.admitted(name)] == [SCORES, None]
    assert federation.status(name) == PUBLISHED
    assert bob.asked == ["concept", "scores"]


def test_a_participant_who_left_before_scoring_does_not_hold_up_the_round(federation):
    alice, bob = federation.machine("alice"), federation.machine("bob")

    def send_and_leave() -> bytes:
        bob.online_after = sys.maxsize
        return federation.file(name="<dog>")

    bob.concepts = [send_and_leave]
    name = federation.run(alice, bob, wait=2)
    assert federation.status(name) == PUBLISHED
    assert [text for text in federation.notes(name) if text.startswith("<bob/dog> was not scored")]


def test_a_concept_withdrawn_while_it_is_scored_is_not_published(federation):
    def withdrawn() -> Identity:
        if len(federation.admitted("round-001")) == 2:
            withdraw(federation.state, federation.journal, "<bob/bobs-cat>")
        return SCORES

    name = federation.run(federation.machine("alice", scores=[withdrawn]), federation.machine("bob"), wait=2)
    assert federation.tokens(name) == ["<alice/alices-cat>"]


def test_a_withdrawn_concept_stays_out_of_later_rounds_though_its_owner_answers_again(federation):
    alice, bob = federation.machine("alice"), federation.machine("bob")
    federation.run(alice, bob, wait=2)
    withdraw(federation.state, federation.journal, "<bob/bobs-cat>")
    name = federation.run(federation.machine("carol"), bob)
    assert federation.tokens(name) == ["<carol/carols-cat>"]
    assert "was withdrawn" in federation.refusals(name)["bob"]


def test_a_cancelled_round_stops(federation):
    def cancel() -> None:
        federation.journal.rounds.advance("round-001", CANCELLED)

    with pytest.raises(RoundCancelledError):
        federation.run(federation.machine("alice", cancel))
    assert federation.status("round-001") == CANCELLED
