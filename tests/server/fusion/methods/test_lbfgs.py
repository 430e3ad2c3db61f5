"""The paper's own solver, against dense least squares and another L-BFGS, and what it stores."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mos_common.edlora import LowRank, attached
from mos_common.errors import FusionError, RequestError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_common.words import encode_prompts
from mos_server.fusion import paper_rows
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods import lbfgs as published
from mos_server.fusion.methods.lbfgs import LbfgsSettings
from mos_server.fusion.stored_rows import StoredRows
from reference import dense, lbfgs

BRIEF = LbfgsSettings(text_iterations=20, unet_iterations=5, steps=2)
ONCE = LbfgsSettings(text_iterations=1, unet_iterations=1, steps=2)


@pytest.fixture
def two(base, make_concept) -> list[NamedConcept]:
    return [
        NamedConcept("alice", make_concept(base, "<cat>", seed=1, rank=2)),
        NamedConcept("bob", make_concept(base, "<dog>", seed=2, rank=3)),
    ]


@pytest.fixture
def stored(monkeypatch) -> list[tuple[Group, StoredRows]]:
    """What every recording of a fusion stores, in its order."""
    recorded: list[tuple[Group, StoredRows]] = []
    real = paper_rows.Recording.record

    def keeping(self, base, sink):
        recorded.append((self.group, real(self, base, sink)))
        return recorded[-1][1]

    monkeypatch.setattr(paper_rows.Recording, "record", keeping)
    return recorded


def stored_bytes(stored: list[tuple[Group, StoredRows]], group: Group) -> int:
    return sum(part.numel() * 4 for of, kept in stored if of is group for rows in kept.stored.values() for part in rows)


def layer_problem(seed: int = 0, condition: float = 1.0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """W0, three ΔWi and three Xi.

    From the first to the last input the rows shrink by `condition`.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), 8)
    W0 = torch.randn(6, 8, generator=generator)
    rows = [torch.randn(40, 8, generator=generator) * scales for _ in range(3)]
    changes = [0.3 * torch.randn(6, 8, generator=generator) for _ in range(3)]
    return W0, changes, rows


def optimum(changes: list[Tensor], rows: list[Tensor]) -> Tensor:
    doubles = [[one.double() for one in many] for many in (rows, changes)]
    return dense.solve(*doubles, doubles[0][0], ridge=0.0, preserve=0.0)


def objective(change: Tensor, changes: list[Tensor], rows: list[Tensor]) -> float:
    return sum(
        float((X.double() @ (change.double() - own.double()).T).square().sum()) / len(X)
        for X, own in zip(rows, changes, strict=True)
    )


def test_on_a_well_conditioned_layer_it_arrives_at_the_least_squares_optimum():
    """And where the oracle's own L-BFGS arrives."""
    W0, changes, rows = layer_problem()
    solved = published.lbfgs_layer(W0, changes, rows, 500)
    torch.testing.assert_close(solved.double(), optimum(changes, rows), rtol=1e-3, atol=1e-3)
    oracle = lbfgs.fuse_layer(W0.double(), [c.double() for c in changes], [X.double() for X in rows], 500) - W0
    torch.testing.assert_close(solved.double(), oracle, rtol=1e-3, atol=1e-3)


def test_it_computes_in_the_number_format_of_the_weight():
    W0, changes, rows = layer_problem()
    solved = published.lbfgs_layer(W0.double(), [c.double() for c in changes], [X.double() for X in rows], 500)
    assert solved.dtype == torch.float64
    assert objective(solved, changes, rows) < objective(optimum(changes, rows), changes, rows) * (1 + 1e-6)


def test_the_best_that_was_met_is_kept_and_more_steps_are_no_worse():
    W0, changes, rows = layer_problem(1)
    reached = [objective(published.lbfgs_layer(W0, changes, rows, steps), changes, rows) for steps in (1, 3, 10, 100)]
    assert reached == sorted(reached, reverse=True)
    assert reached[0] < objective(torch.zeros(6, 8), changes, rows)


def test_small_changes_are_optimised_as_well_as_large_ones():
    """The objective is quadratic: a change a thousandth as large has its optimum at a thousandth.

    (float64: W0's rounding aside.)
    """
    W0, changes, rows = layer_problem(2, condition=100)
    for size in (1.0, 1e-3):
        small = [size * change.double() for change in changes]
        solved = published.lbfgs_layer(W0.double(), small, [X.double() for X in rows], 500)
        nothing, best = objective(torch.zeros(6, 8), small, rows), objective(optimum(small, rows), small, rows)
        assert (objective(solved, small, rows) - best) / nothing < 1e-7


def test_one_concept_is_found_again():
    W0, changes, rows = layer_problem()
    solved = published.lbfgs_layer(W0, changes[:1], rows[:1], 500)
    torch.testing.assert_close(solved, changes[0], rtol=1e-3, atol=1e-3)


def test_where_nobody_changes_anything_nothing_is_changed():
    W0, changes, rows = layer_problem()
    assert not published.lbfgs_layer(W0, [torch.zeros_like(one) for one in changes], rows, 50).any()


def test_one_concept_survives_on_its_words(tiny, make_concept):
    """Stored rows, three groups in the paper's order, on real activations.

    They come close to the one concept where it was recorded.
    """
    concept, lines = make_concept(tiny, "<cat>", seed=1), list[str]()
    changes = fuse(tiny, [NamedConcept("alice", concept)], BRIEF, progress=lines.append).changes
    assert changes.keys() == {layer.name for layer in tiny.layout.attention}
    assert "GiB" in lines[0]
    text = {name: pair for name, pair in changes.items() if name.startswith("text_encoder.")}
    with torch.no_grad(), attached(tiny, text):
        features = encode_prompts(tiny, [concept.name], {concept.name: concept.words[0]})[0].double()
    for k, name in enumerate(cross.name for cross in tiny.layout.cross_attentions):
        rows = features[k, 1:4]
        own = rows @ concept.pairs[f"unet.{name}.to_v"].change(torch.float64).T
        solved = rows @ changes[f"unet.{name}.to_v"].change(torch.float64).T
        assert float((solved - own).norm() / own.norm()) < 0.2


def test_the_same_concepts_give_the_same_model_to_the_bit(tiny, make_concept):
    concepts = [NamedConcept("alice", make_concept(tiny, "<cat>", seed=1))]
    few = LbfgsSettings(text_iterations=2, unet_iterations=2, steps=2)
    once, again = (fuse(tiny, concepts, few).changes for _ in range(2))
    for name, pair in once.items():
        assert torch.equal(pair.A, again[name].A) and torch.equal(pair.B, again[name].B)


def test_memory_is_counted_before_anything_is_stored(base, two, stored):
    """Every row of the UNet, of every step and concept.

    It is as much as storing them takes, also where a scheduler adds a step.
    """
    needed = paper_rows.memory_needed(base, two, 2)
    fuse(base, two, ONCE)
    assert needed == stored_bytes(stored, Group.SPATIAL)
    assert needed > max(stored_bytes(stored, group) for group in (Group.TEXT, Group.CROSS))


def test_layers_that_only_an_import_changes_are_counted_too(tiny, make_concept, stored):
    concept = make_concept(tiny, "<cat>")
    forwards = [layer for layer in tiny.layout.layers if layer.group is Group.SPATIAL and ".ff." in layer.name]
    wide = {layer.name: LowRank(torch.ones(1, layer.d_in), torch.ones(layer.d_out, 1), 1e-3) for layer in forwards}
    imported = [NamedConcept("", replace(concept, pairs=concept.pairs | wide))]
    needed = paper_rows.memory_needed(tiny, imported, 2)
    fuse(tiny, imported, ONCE)
    assert needed == stored_bytes(stored, Group.SPATIAL)
    assert needed > paper_rows.memory_needed(tiny, [NamedConcept("", concept)], 2)


def test_nothing_is_stored_for_layers_that_nobody_changes(tiny, make_concept, stored):
    concept = make_concept(tiny, "<cat>")
    cross = {layer.name for layer in tiny.layout.attention if layer.group is Group.CROSS}
    only = replace(concept, pairs={name: pair for name, pair in concept.pairs.items() if name in cross})
    changes = fuse(tiny, [NamedConcept("", only)], BRIEF).changes
    assert changes.keys() == cross
    assert {group for group, _ in stored} == {Group.CROSS}


def test_too_little_memory_is_reported_before_it_starts(tiny, make_concept, stored, monkeypatch):
    monkeypatch.setattr(paper_rows.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    two = [
        NamedConcept(participant, make_concept(tiny, "<cat>", seed=seed))
        for seed, participant in enumerate(("alice", "bob"))
    ]
    with pytest.raises(FusionError, match=r"needs .* GiB for the rows of 2 concepts.*--method gradient"):
        fuse(tiny, two, LbfgsSettings(steps=2))
    assert not stored


@pytest.mark.parametrize("wrong", [{"text_iterations": 0}, {"unet_iterations": 0}, {"steps": 0}, {"batch": 0}], ids=str)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError):
        LbfgsSettings(**wrong)
