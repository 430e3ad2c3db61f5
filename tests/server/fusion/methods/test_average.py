"""The average of the changes, against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import torch

from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.average import AverageSettings
from reference import dense
from reference.small_fusion import relative


def test_it_is_the_mean_of_the_changes(tiny, three):
    fused = fuse(tiny, three, AverageSettings())
    for layer in tiny.layout.attention:
        expected = sum(dense.dense(named.concept)[layer.name] for named in three) / 3
        assert relative(fused.changes[layer.name].change(torch.float64), expected) < 1e-6
    assert sorted(fused.vocabulary) == sorted(named.token for named in three)
    assert all(concept.survival == {} for concept in fused.manifest.concepts)


def test_a_concept_counts_by_its_weight(tiny, two):
    fused = fuse(tiny, two, AverageSettings(), weights={"<alice/cat>": 3.0})
    for layer in tiny.layout.attention:
        alice, bob = (dense.dense(named.concept)[layer.name] for named in two)
        assert relative(fused.changes[layer.name].change(torch.float64), (3 * alice + bob) / 4) < 1e-6


def test_a_concept_counts_by_its_alpha(tiny, make_concept):
    concept = make_concept(tiny)
    stronger = replace(concept, pairs={name: LowRank(p.A, p.B, 2 * p.alpha) for name, p in concept.pairs.items()})
    once, twice = (fuse(tiny, [NamedConcept("", it)], AverageSettings()).changes for it in (concept, stronger))
    for name in once:
        torch.testing.assert_close(twice[name].change(), 2 * once[name].change())
