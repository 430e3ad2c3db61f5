"""A round without those who spoil it: left out by name, or held back with a question."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from mos_common.concept_file import concept_from_bytes, concept_to_bytes
from mos_common.edlora import LowRank
from mos_server.round.follow import describe_influence, describe_round
from mos_server.state.records import HELD_BACK, PUBLISHED

SMALL = {"steps": 2, "contexts": ["V"], "ordinary": ["a"]}
KEEP_ALL = {"settings": {**SMALL, "least_share": None}, "keep_all": True}


def times(data: bytes, factor: float, name: str) -> bytes:
    """The concept file with every change times a factor, under another name."""
    concept = concept_from_bytes(data)
    pairs = {layer: LowRank(pair.A, factor * pair.B, pair.alpha) for layer, pair in concept.pairs.items()}
    return concept_to_bytes(replace(concept, name=name, pairs=pairs))


def honest(federation, *names: str):
    return [federation.machine(name, federation.file(name=f"<{name}s-cat>", rank=4)) for name in names]


def test_one_that_ruins_others_is_left_out_journalled_and_shown(federation):
    """The others are published; the numbers are in the journal, the manifest and `status`."""
    loud = federation.machine("mallory", times(federation.file(name="<x>", rank=4), 3.0, "<x>"))
    name = federation.run(*honest(federation, "alice", "bob", "carol"), loud, wait=4)
    assert federation.status(name) == PUBLISHED
    assert federation.tokens(name) == ["<alice/alices-cat>", "<bob/bobs-cat>", "<carol/carols-cat>"]
    assert federation.refusals(name).keys() == {"mallory"}
    round_ = federation.journal.rounds.get(name)
    (line,) = [line for line in describe_round(federation.journal, round_) if "mallory" in line]
    assert line.startswith("  mallory <x>: not in it: it") and "least" in line
    lines = list(describe_influence(federation.state, round_))
    assert 1 <= len(lines) <= 3 and all(line.startswith("  influence: <") for line in lines)
    table = federation.model(name).manifest.influence
    assert table.keys() == {"text", "cross", "spatial"}
    assert {len(row) for rows in table.values() for row in rows} == {3}


def test_a_copy_counts_once_and_only_the_operator_learns_whose_it_is(federation):
    alice, bob = honest(federation, "alice", "bob")
    copy = federation.machine("mallory", times(alice.concepts[0], 0.5, "<mine>"), online_after=2)
    name = federation.run(alice, bob, copy, wait=3)
    assert federation.tokens(name) == ["<alice/alices-cat>", "<bob/bobs-cat>"]
    assert "its changes are those of <alice/alices-cat>" in federation.refusals(name)["mallory"]
    assert "mallory" not in json.dumps(federation.model(name).manifest.model_dump(mode="json"))


def test_two_that_contradict_each_other_hold_the_round_back_with_the_question(federation):
    """The opposite change under the same words, with enough of its own to be no copy."""
    one, two, three = honest(federation, "alice", "bob", "carol")
    original, other = (concept_from_bytes(machine.concepts[0]) for machine in (one, two))
    pairs = {
        layer: LowRank(pair.A.repeat(2, 1), _beside(pair, other.pairs[layer]), 2 * pair.alpha)
        for layer, pair in original.pairs.items()
    }
    against = concept_to_bytes(replace(original, name="<x>", pairs=pairs))
    name = federation.run(one, two, three, federation.machine("mallory", against), wait=4)
    assert federation.status(name) == HELD_BACK
    reason = federation.journal.rounds.get(name).reason
    assert "<alice/alices-cat>" in reason and "<mallory/x>" in reason and "ruin each other" in reason
    assert 'withdraw "<mallory/x>"' in reason or "withdraw '<mallory/x>'" in reason
    assert reason.endswith("--keep-all")
    assert federation.refusals(name) == {}
    again = federation.run(one, two, three, federation.machine("mallory", against), wait=4, fusion=KEEP_ALL)
    assert federation.status(again) == PUBLISHED and "<mallory/x>" in federation.tokens(again)


def _beside(pair: LowRank, other: LowRank) -> torch.Tensor:
    """Return B of -ΔW and three tenths of another concept's B: opposite, and no copy."""
    noise = other.B[:, : pair.rank]
    return torch.cat([-pair.B, 0.3 * noise * pair.B.norm() / noise.norm()], dim=1)
