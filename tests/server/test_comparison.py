"""Concepts beside each other: a copy counts once under any disguise, and nobody drowns the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mos_common.concept import Concept
from mos_common.concept_file import concept_from_bytes, concept_to_bytes
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_server.comparison import near_copies, too_loud, unfit_together


def each_pair(concept: Concept, changed: Callable[[LowRank], LowRank], **fields: object) -> Concept:
    return replace(concept, pairs={name: changed(pair) for name, pair in concept.pairs.items()}, **fields)


def rotated(pair: LowRank) -> LowRank:
    """A -> RA, B -> BR⁻¹: the same product of other factors."""
    R = torch.randn(pair.rank, pair.rank).double() + 2 * torch.eye(pair.rank)
    return LowRank((R @ pair.A.double()).float(), (pair.B.double() @ torch.linalg.inv(R)).float(), pair.alpha)


def of_full_rank(pair: LowRank) -> LowRank:
    """The same change in more columns than it needs."""
    A, B = torch.cat([pair.A, pair.A]), torch.cat([pair.B, pair.B], dim=1)
    return LowRank(A, B / 2, pair.alpha * 2)


DISGUISES = {
    "another alpha": lambda c: each_pair(c, lambda p: LowRank(p.A, p.B, p.alpha / 3)),
    "another factor": lambda c: each_pair(c, lambda p: LowRank(p.A, 0.4 * p.B, p.alpha)),
    "the opposite sign": lambda c: each_pair(c, lambda p: LowRank(p.A, -p.B, p.alpha)),
    "other factors of the product": lambda c: each_pair(c, rotated),
    "twice the rank": lambda c: each_pair(c, of_full_rank),
    "half precision": lambda c: concept_from_bytes(concept_to_bytes(c, torch.bfloat16)),
    "a little noise": lambda c: each_pair(c, lambda p: LowRank(p.A + 0.01 * torch.randn_like(p.A), p.B, p.alpha)),
    "longer words": lambda c: replace(c, words=tuple(3 * words for words in c.words)),
    "other words": lambda c: replace(c, words=tuple(torch.randn_like(words) for words in c.words)),
    "another class and licence": lambda c: replace(c, class_word="dog", licence="CC0"),
    "most of its layers": lambda c: replace(c, pairs=dict(list(c.pairs.items())[10:])),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_copy_counts_once_under_any_disguise(tiny, make_concept, disguise):
    """The earlier one stays; the reason names it and says how alike they are."""
    original = NamedConcept("alice", make_concept(tiny, "<cat>", seed=1, rank=4))
    copy = NamedConcept("mallory", replace(DISGUISES[disguise](original.concept), name="<mine>"))
    other = NamedConcept("bob", make_concept(tiny, "<dog>", seed=2, rank=4))
    reasons = near_copies([other, original, copy], tiny)
    assert reasons.keys() == {"<mallory/mine>"}
    assert reasons["<mallory/mine>"].startswith("its changes are those of <alice/cat> (cosine 0.99") or (
        "its changes are those of <alice/cat> (cosine 1.0000" in reasons["<mallory/mine>"]
    )
    assert near_copies([copy, original], tiny).keys() == {"<alice/cat>"}


def test_the_cosine_is_that_of_the_dense_changes(tiny, make_concept):
    """On both sides of the bound: cos = 1/√(1+t²) with an orthogonal part of t times the norm."""
    concept = make_concept(tiny, "<cat>", seed=1, rank=2)
    for t, copies in ((0.13, 1), (0.16, 0)):
        pairs = {}
        for name, pair in concept.pairs.items():
            change = pair.change(torch.float64)
            noise = torch.randn_like(change)
            noise -= change * (noise * change).sum() / change.square().sum()
            U, S, V = torch.linalg.svd(change + t * noise * change.norm() / noise.norm(), full_matrices=False)
            pairs[name] = LowRank((S[:, None] * V).float(), U.float(), float(len(S)))
        beside = NamedConcept("b", replace(concept, pairs=pairs))
        assert len(near_copies([NamedConcept("a", concept), beside], tiny)) == copies


def test_concepts_of_words_alone_are_compared_by_their_words(tiny, make_concept):
    words = make_concept(tiny, "<cat>", seed=1)
    plain = [NamedConcept("a", replace(words, pairs={}))]
    scaled = NamedConcept("b", replace(words, pairs={}, words=(words.words[0] * 0.7,)))
    near = NamedConcept("c", replace(words, pairs={}, words=(words.words[0] + 0.1 * words.words[0].roll(1, 2),)))
    other = NamedConcept("d", replace(words, pairs={}, words=(words.words[0][:, :1],)))
    assert near_copies([*plain, scaled, near, other], tiny) == {
        "<b/cat>": "its words are those of <a/cat> (cosine 1.0000; above 0.999 a concept counts once)"
    }


def test_equals_are_no_copies_even_with_the_same_words(tiny, make_concept):
    """Participants tune from the same seed: words start alike, changes do not stay alike."""
    concepts = [make_concept(tiny, "<cat>", seed=seed) for seed in range(4)]
    named = [NamedConcept(f"p{i}", replace(each, words=concepts[0].words)) for i, each in enumerate(concepts)]
    assert unfit_together(named, tiny) == {}


def of_norms(tiny, make_concept, *shares: float) -> list[NamedConcept]:
    """Concepts that change every layer by these shares of its norm."""
    named = []
    for seed, share in enumerate(shares):
        concept = make_concept(tiny, "<cat>", seed=seed)
        norms = {layer.name: share * float(layer.module.weight.norm()) for layer in tiny.layout.attention}
        pairs = {
            name: LowRank(pair.A, pair.B * norms[name] / float(pair.change().norm()), pair.alpha)
            for name, pair in concept.pairs.items()
        }
        named.append(NamedConcept(f"p{seed}", replace(concept, pairs=pairs)))
    return named


@pytest.mark.parametrize(
    ("shares", "loud"),
    [
        ((0.03, 0.03, 0.21), {"<p2/cat>"}),
        ((0.03, 0.03, 0.19), set()),
        ((0.08, 0.1, 0.12, 0.11, 0.51), {"<p4/cat>"}),
        ((0.08, 0.1, 0.12, 0.11, 0.49), set()),
        ((0.05, 0.05, 0.05, 0.05, 0.6, 0.99), {"<p4/cat>", "<p5/cat>"}),
        ((0.05, 0.9), set()),
    ],
    ids=["five times, above ordinary", "ordinary", "above five medians", "below", "two of six", "too few to say"],
)
def test_a_change_far_larger_than_the_others_is_not_fused_with_them(tiny, make_concept, shares, loud):
    assert too_loud(of_norms(tiny, make_concept, *shares), tiny).keys() == loud


def test_one_loud_layer_is_enough_and_is_named(tiny, make_concept):
    quiet, other, third = of_norms(tiny, make_concept, 0.04, 0.04, 0.04)
    (loud,) = of_norms(tiny, make_concept, 0.3)
    layer = tiny.layout.attention[20].name
    mixed = {**third.concept.pairs, layer: loud.concept.pairs[layer]}
    reasons = too_loud([quiet, other, NamedConcept("p2", replace(third.concept, pairs=mixed))], tiny)
    assert reasons["<p2/cat>"] == (
        f"{layer} is changed by 0.30 of its norm, the others change it by 0.040 (median); "
        "at most 0.20 is fused with them"
    )


def test_loud_copies_of_one_do_not_shift_the_median(tiny, make_concept):
    """Three copies at 0.9 are one concept; then the median is that of the quiet ones."""
    quiet = of_norms(tiny, make_concept, 0.04, 0.04, 0.04)
    loud = NamedConcept(
        "m0", each_pair(make_concept(tiny, "<cat>", seed=9), lambda p: LowRank(p.A, 2.5 * p.B, p.alpha))
    )
    copies = [NamedConcept(f"m{i}", each_pair(loud.concept, rotated)) for i in (1, 2, 3)]
    assert unfit_together([*quiet, loud, *copies], tiny).keys() == {"<m0/cat>", "<m1/cat>", "<m2/cat>", "<m3/cat>"}
