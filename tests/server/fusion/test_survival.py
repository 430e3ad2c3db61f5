"""What is left of a concept is what the stored rows say, from second moments alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mos_common.edlora import LowRank
from mos_common.layers import Group, Layer
from mos_server.fusion import survival
from mos_server.fusion.moments import Moments
from mos_server.fusion.normal_equation import NormalEquations
from mos_server.fusion.survival import survival_in

NORMAL = torch.Generator().manual_seed(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=NORMAL)


def moments_of(X: torch.Tensor, inputs: tuple[str, ...]) -> Moments:
    moments = Moments()
    for reads in inputs:
        moments.add(reads, X)
    return moments.finished()


def equations_of(rows: list[torch.Tensor], changes: list[dict[str, LowRank]], layers: list[Layer], **terms: float):
    """The equations of some concepts, and their moments."""
    inputs = tuple(dict.fromkeys(layer.reads for layer in layers))
    moments = [moments_of(X, inputs) for X in rows]
    settings = {"preserve": 0.0, "ridge": 1e-9, "ridge_kind": "trace", "towards": 0.0, "cap": 1e30} | terms
    equations = NormalEquations(layers, moments_of(normal(50, rows[0].shape[1]), inputs), **settings)
    for pairs, each in zip(changes, moments, strict=True):
        equations.add(SimpleNamespace(pairs=pairs), each)
    return equations, lambda i, reads: moments[i].mean(reads)


def energy(X: torch.Tensor, change: torch.Tensor) -> float:
    """‖X ΔWᵀ‖²/m of stored rows."""
    return float((X.double() @ change.T).square().sum()) / len(X)


@pytest.mark.parametrize("at_once", [1, 256 << 20], ids=["a layer at a time", "all layers"])
@pytest.mark.parametrize(("width", "count"), [(320, 2000), (768, 300)], ids=["spatial", "text"])
def test_it_is_what_stored_rows_say(monkeypatch, width, count, at_once):
    """Shapes of Stable Diffusion and a realistic spectrum; one concept leaves a layer alone."""
    monkeypatch.setattr(survival, "BYTES_AT_ONCE", at_once)
    mixing = normal(width, width) / width**0.5 * torch.logspace(0, -3, width)
    rows = [normal(count, width) @ mixing.T + 0.3 * normal(width) for _ in range(3)]
    layers = [
        Layer(name, nn.Linear(width, 32, bias=False), Group.SPATIAL, reads)
        for name, reads in (("q", "one"), ("k", "one"), ("out", "two"))
    ]
    changes = [
        {
            layer.name: LowRank(normal(rank, width) / width**0.5, 0.05 * normal(32, rank), 3.0)
            for layer in layers
            if (rank, layer.name) != (2, "k")
        }
        for rank in (1, 2, 4)
    ]
    equations, mean_of = equations_of(rows, changes, layers, preserve=0.1)
    solutions = [equations.solve(2.0), equations.solve_uncut()]
    for solution, found in zip(solutions, survival_in(equations, solutions, mean_of, 3), strict=True):
        for X, own, left in zip(rows, changes, found, strict=True):
            expected = {
                name: energy(X, solution[name].change(torch.float64) - pair.change(torch.float64))
                for name, pair in own.items()
            }
            whole = sum(energy(X, pair.change(torch.float64)) for pair in own.values())
            assert left.residual == pytest.approx(expected, rel=1e-2, abs=1e-6 * whole)
            assert left.energy_kept == pytest.approx(1 - sum(expected.values()) / whole, abs=1e-5)


def test_a_change_that_survives_whole_has_no_residual():
    layers = [Layer("q", nn.Linear(12, 9, bias=False), Group.SPATIAL, "one")]
    pair = LowRank(normal(2, 12), normal(9, 2), 2.0)
    equations, mean_of = equations_of([normal(40, 12)], [{"q": pair}], layers)
    ((left,),) = survival_in(equations, [{"q": pair}], mean_of, 1)
    assert left.energy_kept == pytest.approx(1, abs=1e-12)


def test_a_concept_that_changes_nothing_keeps_everything():
    layers = [Layer("q", nn.Linear(12, 9, bias=False), Group.SPATIAL, "one")]
    changes = [{"q": LowRank(normal(2, 12), normal(9, 2), 2.0)}, {}]
    equations, mean_of = equations_of([normal(40, 12), normal(40, 12)], changes, layers)
    ((_, left),) = survival_in(equations, [equations.solve()], mean_of, 2)
    assert (left.energy_kept, left.residual) == (1.0, {})


def test_the_uncut_solution_is_the_same_change():
    layers = [Layer("q", nn.Linear(12, 9, bias=False), Group.SPATIAL, "one")]
    changes = [{"q": LowRank(normal(4, 12), normal(9, 4), 2.0)} for _ in range(5)]
    equations, _ = equations_of([normal(40, 12) for _ in changes], changes, layers, preserve=1.0)
    uncut, cut = equations.solve_uncut()["q"], equations.solve()["q"]
    assert (uncut.rank, cut.rank) == (20, 9)
    torch.testing.assert_close(uncut.change(torch.float64), cut.change(torch.float64), rtol=1e-5, atol=1e-6)
