"""The influence of concepts on each other is what fusing without one of them gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mos_common.fused_model import NamedConcept
from mos_server.fusion import influence
from mos_server.fusion.fuse import fuse
from reference.small_fusion import SETTINGS

# With a text encoder of their own, keys and values read the same whoever else is fused.
OWN = replace(SETTINGS, text_inputs="own", contexts=("V",), ordinary=("a",))


def tables(fused) -> dict[str, dict[tuple[str, str], float]]:
    """Influence by group and by (without whom, whose)."""
    tokens = [concept.token for concept in fused.manifest.concepts]
    return {
        group: {(j, i): table[row][column] for row, j in enumerate(tokens) for column, i in enumerate(tokens)}
        for group, table in fused.manifest.influence.items()
    }


def kept(fused) -> dict[tuple[str, str], float]:
    """Energy kept by group and token."""
    return {
        (group, concept.token): survival.energy_kept
        for concept in fused.manifest.concepts
        for group, survival in concept.survival.items()
    }


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        (OWN, {}),
        (replace(OWN, towards=0.5, ridge=0.3, cap=0.05), {"<bob/dog>": 2.0}),
        (replace(OWN, ridge_kind="diagonal", preserve=3.0), {}),
    ],
    ids=["plain", "bounded and weighted", "diagonal ridge"],
)
def test_it_is_what_fusing_the_others_alone_gives(random_base, make_concept, tmp_path, settings, weights):
    """For every concept and group of layers, with layers that one concept leaves alone."""
    small = random_base(width=8)
    concepts = [
        NamedConcept(who, make_concept(small, name, seed=seed, rank=seed + 1))
        for seed, (who, name) in enumerate((("alice", "<cat>"), ("bob", "<dog>"), ("carol", "<tree>")))
    ]
    some = dict(list(concepts[2].concept.pairs.items())[::3])
    concepts[2] = NamedConcept("carol", replace(concepts[2].concept, pairs=some))
    everybody = fuse(small, concepts, settings, weights=weights, moments_dir=tmp_path)
    found = tables(everybody)
    for left in concepts:
        rest = [named for named in concepts if named is not left]
        others = {token: weight for token, weight in weights.items() if token != left.token}
        for (group, token), expected in kept(fuse(small, rest, settings, weights=others, moments_dir=tmp_path)).items():
            assert found[group][left.token, token] == pytest.approx(expected, abs=2e-3)
    for (group, token), expected in kept(everybody).items():
        assert found[group][token, token] == pytest.approx(expected, abs=1e-3)


def test_it_is_the_same_however_many_solutions_are_held(random_base, make_concept, tmp_path, monkeypatch):
    small = random_base(width=8)
    concepts = [NamedConcept(f"p{seed}", make_concept(small, seed=seed)) for seed in range(5)]
    at_once = fuse(small, concepts, SETTINGS, moments_dir=tmp_path).manifest.influence
    monkeypatch.setattr(influence, "AT_ONCE", 2)
    assert fuse(small, concepts, SETTINGS, moments_dir=tmp_path).manifest.influence == at_once


def test_one_concept_has_no_influence(random_base, make_concept):
    small = random_base(width=8)
    assert fuse(small, [NamedConcept("alice", make_concept(small))], SETTINGS).manifest.influence == {}
