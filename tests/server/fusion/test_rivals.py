"""The rival merges, each against another road: formulas by hand, and dense constraints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group, concept_layers, cross_attentions
from mos_common.words import encode_prompts
from mos_server.fusion import rivals
from mos_server.fusion.fuse import fuse
from mos_server.fusion.settings import FusionSettings

SETTINGS = FusionSettings(contexts=("V", "photo of a V"), ordinary=("", "a tree", "a dog in a meadow"), steps=2)
ONES = {"<alice/cat>": 1.0, "<bob/dog>": 1.0}


@pytest.fixture
def two(tiny, make_concept) -> list[NamedConcept]:
    return [
        NamedConcept("alice", make_concept(tiny, "<cat>", seed=1, rank=2)),
        NamedConcept("bob", make_concept(tiny, "<dog>", seed=2, rank=3)),
    ]


def one_layer(tiny, concepts: list[NamedConcept], matrices: list[list[list[float]]]) -> tuple[list[NamedConcept], str]:
    """Concepts that change nothing but the corner of one layer, by these matrices."""
    layer = concept_layers(tiny)[0]
    made = []
    for named, matrix in zip(concepts, matrices, strict=True):
        change = torch.zeros(layer.d_out, layer.d_in)
        corner = torch.tensor(matrix)
        change[: len(corner), : corner.shape[1]] = corner
        pair = LowRank(torch.eye(layer.d_in), change, float(layer.d_in))
        made.append(NamedConcept(named.participant, replace(named.concept, pairs={layer.name: pair})))
    return made, layer.name


def test_ties_trims_elects_and_averages_who_agrees(tiny, two):
    """By hand: entry by entry, the sign of the sum wins, and who has that sign is averaged; who was trimmed does not vote."""
    concepts, layer = one_layer(tiny, two, [[[4.0, -3.0, 2.0]], [[2.0, 1.0, -6.0]]])
    fused = rivals.ties(tiny, concepts, ONES, density=1.0)[layer].change()
    torch.testing.assert_close(fused[0, :3], torch.tensor([3.0, -3.0, -6.0]))
    size = fused.numel()
    trimmed = rivals.ties(tiny, concepts, ONES, density=2 / size)[layer].change()  # the two largest of each
    torch.testing.assert_close(trimmed[0, :3], torch.tensor([3.0, -3.0, -6.0]))
    one_each = rivals.ties(tiny, concepts, ONES, density=1 / size)[layer].change()
    torch.testing.assert_close(one_each[0, :3], torch.tensor([4.0, 0.0, -6.0]))


def test_dare_drops_at_random_rescales_and_can_be_made_again(tiny, two, monkeypatch):
    """By its seed alone; nobody else's random numbers change, a GPU's neither."""
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    once = rivals.dare(tiny, two, ONES, density=0.25)
    assert torch.equal(torch.get_rng_state(), state)
    torch.default_generator.manual_seed(5)
    again = rivals.dare(tiny, two, ONES, density=0.25)
    for name, pair in once.items():
        assert torch.equal(pair.A, again[name].A) and torch.equal(pair.B, again[name].B)
    name = concept_layers(tiny)[0].name
    assert not torch.equal(rivals.dare(tiny, two, ONES, density=0.25, seed=1)[name].change(), once[name].change())
    alone = rivals.dare(tiny, two[:1], ONES, density=0.25)
    found, own = alone[name].change(), two[0].concept.pairs[name].change()
    kept = found.abs() > 1e-3 * own.abs().max()
    torch.testing.assert_close(found[kept], 4 * own[kept], rtol=1e-3, atol=1e-4)
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.02)


def test_with_everything_kept_dare_is_the_sum(tiny, two):
    weights = {"<alice/cat>": 0.5, "<bob/dog>": 2.0}
    by_sum = rivals.weighted_sum(tiny, two, weights)
    for name, pair in rivals.dare(tiny, two, weights, density=1.0).items():
        torch.testing.assert_close(pair.change(), by_sum[name].change(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [rivals.ties, rivals.dare])
def test_a_layer_that_one_concept_leaves_alone_is_merged_with_no_change(tiny, two, merge):
    name = concept_layers(tiny)[3].name
    some = replace(two[1].concept, pairs={k: v for k, v in two[1].concept.pairs.items() if k != name})
    fused = merge(tiny, [two[0], NamedConcept("bob", some)], ONES, density=1.0)[name].change()
    torch.testing.assert_close(fused, two[0].concept.pairs[name].change(), rtol=1e-4, atol=1e-5)


def words_of(tiny, named: NamedConcept) -> torch.Tensor:
    """Features of "V" by cross-attention layer, as the untouched text encoder gives them: the words and the first end."""
    concept = named.concept
    with torch.no_grad():
        features = encode_prompts(tiny, [concept.name], {concept.name: concept.words[0]})[0].double()
    return features[:, 1 : 1 + concept.words[0].shape[1] + 1]


def test_custom_diffusion_keeps_its_constraints(tiny, two):
    """On each concept's words the merged keys and values are that concept's own; no other layer is touched."""
    fused = rivals.custom_diffusion(tiny, two, SETTINGS.ordinary)
    assert {layer.group for layer in concept_layers(tiny) if layer.name in fused} == {Group.CROSS}
    for named in two:
        words = words_of(tiny, named)
        for k, (name, _) in enumerate(cross_attentions(tiny)):
            for part in ("to_k", "to_v"):
                layer = f"unet.{name}.{part}"
                own = words[k] @ named.concept.pairs[layer].change(torch.float64).T
                found = words[k] @ fused[layer].change(torch.float64).T
                assert float((found - own).norm() / own.norm()) < 1e-6


def test_custom_diffusion_is_the_least_change_of_ordinary_text_that_keeps_them(tiny, two):
    """Against the Lagrange system of the constrained problem, [[R, Cᵀ], [C, 0]], solved as it stands."""
    fused = rivals.custom_diffusion(tiny, two, SETTINGS.ordinary)
    C = [torch.cat(rows) for rows in zip(*(rivals._features(tiny, named) for named in two), strict=True)]
    ordinary = rivals._features(tiny, None, SETTINGS.ordinary)
    sizes = [len(rivals._features(tiny, named)[0]) for named in two]
    for k, (name, _) in enumerate(cross_attentions(tiny)):
        layer = f"unet.{name}.to_v"
        R = ordinary[k].T @ ordinary[k]
        R += rivals.DAMPING * R.diagonal().mean() * torch.eye(len(R))
        own = [named.concept.pairs[layer].change(torch.float64) for named in two]
        V = torch.cat([rows @ change.T for rows, change in zip(C[k].split(sizes), own, strict=True)])
        system = torch.cat([torch.cat([R, C[k].T], dim=1), torch.cat([C[k], torch.zeros(len(C[k]), len(C[k]))], dim=1)])
        known = torch.cat([torch.zeros(len(R), V.shape[1], dtype=torch.float64), V])
        expected = torch.linalg.solve(system, known)[: len(R)].T
        found = fused[layer].change(torch.float64)
        assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_custom_diffusion_keeps_constraints_that_are_there_twice(tiny, two):
    """Two participants bring one concept: every constraint depends on another one, and all of them can be kept."""
    twice = [two[0], NamedConcept("carol", two[0].concept)]
    fused, words = rivals.custom_diffusion(tiny, twice, SETTINGS.ordinary), words_of(tiny, two[0])
    for k, (name, _) in enumerate(cross_attentions(tiny)):
        own = words[k] @ two[0].concept.pairs[f"unet.{name}.to_v"].change(torch.float64).T
        found = words[k] @ fused[f"unet.{name}.to_v"].change(torch.float64).T
        assert float((found - own).norm() / own.norm()) < 1e-6


def test_custom_diffusion_moves_ordinary_prompts_less_than_the_sum_does(tiny, two):
    fused, by_sum = rivals.custom_diffusion(tiny, two, SETTINGS.ordinary), rivals.weighted_sum(tiny, two, ONES)
    with torch.no_grad():
        features = encode_prompts(tiny, ["a tree"], {})[0].double()

    def moved(changes: dict[str, LowRank]) -> float:
        return sum(
            float((features[k] @ changes[f"unet.{name}.to_v"].change(torch.float64).T).square().sum())
            for k, (name, _) in enumerate(cross_attentions(tiny))
        )

    assert moved(fused) < 0.5 * moved(by_sum)


@pytest.mark.parametrize("method", ["ties", "dare", "custom-diffusion"])
def test_every_rival_is_a_fused_model(tiny, two, method):
    fused = fuse(tiny, two, replace(SETTINGS, method=method))
    assert fused.manifest.method == method
    assert sorted(fused.vocabulary) == ["<alice/cat>", "<bob/dog>"]
    assert fused.changes
