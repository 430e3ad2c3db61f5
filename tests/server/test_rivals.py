"""The rival merges, each against another road: formulas by hand, dense constraints, least squares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import dense, lbfgs

from mos_common.edlora import LowRank
from mos_common.errors import FusionError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group, concept_layers, cross_attentions
from mos_common.words import encode_prompts
from mos_server.config import FusionSettings
from mos_server.fusion import lbfgs as published
from mos_server.fusion import rivals
from mos_server.fusion.fuse import fuse

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


def test_dare_drops_at_random_rescales_and_can_be_made_again(tiny, two):
    state = torch.get_rng_state()
    once = rivals.dare(tiny, two, ONES, density=0.25)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    again = rivals.dare(tiny, two, ONES, density=0.25)
    for name, pair in once.items():
        assert torch.equal(pair.A, again[name].A) and torch.equal(pair.B, again[name].B)
    alone = rivals.dare(tiny, two[:1], ONES, density=0.25)
    name = concept_layers(tiny)[0].name
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


def test_custom_diffusion_keeps_its_constraints(tiny, two):
    """On each concept's words the merged keys and values are that concept's own; no other layer is touched."""
    fused = rivals.custom_diffusion(tiny, two, SETTINGS.ordinary)
    assert {layer.group for layer in concept_layers(tiny) if layer.name in fused} == {Group.CROSS}
    for named in two:
        concept = named.concept
        vocabulary = {concept.name: concept.words[0]}
        with torch.no_grad():
            features = encode_prompts(tiny, [concept.name], vocabulary)[0].double()
        for k, (name, _) in enumerate(cross_attentions(tiny)):
            rows = features[k, 1 : 1 + concept.words[0].shape[1] + 1]  # the words and the first end
            for part in ("to_k", "to_v"):
                layer = f"unet.{name}.{part}"
                expected = rows @ concept.pairs[layer].change(torch.float64).T
                torch.testing.assert_close(rows @ fused[layer].change(torch.float64).T, expected, rtol=1e-3, atol=1e-4)


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


# -- L-BFGS as published ------------------------------------------------------------------------------------------------


def rows_and_changes(seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    W0 = torch.randn(6, 8, generator=generator)
    rows = [torch.randn(40, 8, generator=generator) for _ in range(3)]
    changes = [0.3 * torch.randn(6, 8, generator=generator) for _ in range(3)]
    return W0, changes, rows


def objective(change, changes, rows) -> float:
    return sum(float((X @ (change - own).T).square().sum()) / len(X) for X, own in zip(rows, changes, strict=True))


def test_on_a_well_conditioned_layer_lbfgs_arrives(tmp_path):
    """At the optimum that least squares gives, and where the oracle's own L-BFGS arrives."""
    W0, changes, rows = rows_and_changes()
    found = published.lbfgs_layer(W0, changes, rows, 500)
    exact = dense.solve(
        [X.double() for X in rows], [c.double() for c in changes], rows[0].double(), ridge=0.0, preserve=0.0
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)
    oracle = lbfgs.fuse_layer(W0.double(), [c.double() for c in changes], [X.double() for X in rows], 500) - W0
    torch.testing.assert_close(found.double(), oracle, rtol=1e-3, atol=1e-3)


def test_the_best_that_was_met_is_kept_and_more_steps_are_no_worse():
    W0, changes, rows = rows_and_changes(1)
    reached = [objective(published.lbfgs_layer(W0, changes, rows, steps), changes, rows) for steps in (1, 3, 10, 100)]
    assert reached == sorted(reached, reverse=True)
    assert reached[0] < objective(torch.zeros(6, 8), changes, rows)


@pytest.fixture
def brief() -> dict[Group, int]:
    return {Group.TEXT: 20, Group.CROSS: 20, Group.SPATIAL: 5}


def test_one_concept_is_found_again_on_its_words(tiny, two, brief):
    """Stored rows, three groups in the paper's order, on real activations: close to the one concept where it was recorded."""
    told: list[str] = []
    changes = published.lbfgs_fusion(tiny, two[:1], SETTINGS, told.append, brief)
    assert changes.keys() == {layer.name for layer in concept_layers(tiny)}
    assert "GiB" in told[0]
    features = None
    concept = two[0].concept
    from mos_common.edlora import attached

    text = {name: pair for name, pair in changes.items() if name.startswith("text_encoder.")}
    with torch.no_grad(), attached(tiny, text):
        features = encode_prompts(tiny, [concept.name], {concept.name: concept.words[0]})[0].double()
    for k, (name, _) in enumerate(cross_attentions(tiny)):
        rows = features[k, 1:4]
        own = rows @ concept.pairs[f"unet.{name}.to_v"].change(torch.float64).T
        found = rows @ changes[f"unet.{name}.to_v"].change(torch.float64).T
        assert float((found - own).norm() / own.norm()) < 0.2


def test_memory_is_counted_before_anything_is_stored(tiny, two, monkeypatch):
    """Every row of the UNet's attention, of every step, prompt and concept: as much as storing them takes."""
    needed = published.memory_needed(tiny, 2, SETTINGS)
    recorded = []
    real = published.Recording.record

    def keeping(self, base, into):
        recorded.append((self.group, real(self, base, into)))
        return recorded[-1][1]

    monkeypatch.setattr(published.Recording, "record", keeping)
    few = dict.fromkeys(Group, 1)
    published.lbfgs_fusion(tiny, two, SETTINGS, lambda line: None, few)
    stored = sum(
        part.numel() * 4
        for group, kept in recorded
        if group is Group.SPATIAL
        for rows in kept.stored.values()
        for part in rows
    )
    assert needed == stored
    monkeypatch.setattr(published.psutil, "virtual_memory", type("Memory", (), {"available": 1000}))
    with pytest.raises(FusionError, match=r"needs .* GiB for the rows of 2 concepts"):
        fuse(tiny, two, replace(SETTINGS, method="lbfgs"))


def test_rows_that_are_not_finite_are_named():
    rows = published.StoredRows()
    rows.add("unet.x.input", torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(FusionError, match=r"activations of unet\.x\.input"):
        rows.finished()


@pytest.mark.parametrize("method", ["ties", "dare", "custom-diffusion"])
def test_every_rival_is_a_fused_model(tiny, two, method):
    fused = fuse(tiny, two, replace(SETTINGS, method=method))
    assert fused.manifest.method == method
    assert sorted(fused.vocabulary) == ["<alice/cat>", "<bob/dog>"]
    assert fused.changes
