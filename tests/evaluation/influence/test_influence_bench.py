"""The bench of influence: no honest concept is left out, and attackers cost the honest little."""

from __future__ import annotations

from pathlib import Path

import pytest

from mos_bench.identity.concepts.tuning import SHIPPED
from mos_bench.influence.measuring import random_changes, random_sets
from mos_bench.influence.run import Options, attack_table, honest_table, run_influence
from mos_common.bounds import relative_change
from mos_common.errors import RequestError

# What an attacker may cost, as a share of what the honest ones keep without it.
LITTLE = 0.05


@pytest.mark.parametrize("strength", [0.05, 0.99])
def test_random_changes_have_the_strength_that_is_asked_for(tiny, strength):
    concept = random_changes(tiny, strength, rank=4, seed=1).concept
    assert concept.pairs.keys() == {layer.name for layer in tiny.layout.attention}
    for layer in tiny.layout.attention:
        assert relative_change(layer, concept.pairs[layer.name]) == pytest.approx(strength, rel=1e-4)


def test_sets_are_of_one_half_until_a_half_is_too_small():
    pools = {"dev": ["a", "b", "c"], "test": ["d", "e", "f"]}
    assert [half for half, _ in random_sets(pools, 2, 4)] == ["dev", "test", "dev", "test"][
        : len(random_sets(pools, 2, 4))
    ]
    assert random_sets(pools, 3, 4) == [("dev", ["a", "b", "c"]), ("test", ["d", "e", "f"])]
    assert random_sets(pools, 6, 4) == [("dev and test", ["a", "b", "c", "d", "e", "f"])]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ranks": (2,)}, "--ranks 2: choose from 4, 1"),
        ({"counts": (65,)}, "--n 65: there are 64 concepts; use at most 64"),
        ({"strengths": (0.1, 1.5)}, "--strengths"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(wrong, said):
    with pytest.raises(RequestError, match=said):
        Options(Path("out"), **wrong)


def test_of_three_shipped_concepts_all_stay_and_loud_random_changes_go(tmp_path):
    """The short form: concepts of the preset's full length that come with the bench."""
    assert len(list(SHIPPED.glob("*.safetensors"))) == 16
    options = Options(
        tmp_path,
        counts=(3,),
        ranks=(4,),
        each=1,
        attacked=(3,),
        strengths=(0.1,),
        per_half=3,
        sets=("contexts=V", "ordinary=a", "steps=1"),
    )
    honest, attacks = run_influence(options)
    assert [row.left_out for row in honest] == ["", "", ""]
    assert [attack.caught for attack in attacks] == [True, True]
    page = (tmp_path / "influence.md").read_text()
    assert honest_table(honest) in page and attack_table(attacks) in page
    assert not list(tmp_path.rglob("tuned/*")), "nothing was tuned"


@pytest.mark.slow
def test_no_honest_concept_is_left_out_and_no_attacker_costs_much(tmp_path):
    """All sixty-four, tuned briefly: every n, both ranks, and the attacks of docs/security.md."""
    briefly = ("contexts=V|photo of a V", "steps=2")
    honest, attacks = run_influence(Options(tmp_path, each=2, steps=20, batch=2, sets=briefly))
    assert {(row.rank, row.n) for row in honest} == {(rank, n) for rank in (4, 1) for n in (3, 8, 14, 32, 64)}
    assert [row for row in honest if row.left_out] == []
    for attack in attacks:
        assert attack.caught or max(attack.lost.values()) <= LITTLE, attack
