"""The equation of gradient fusion, against dense least squares and the paper's L-BFGS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mos_common.edlora import LowRank
from mos_server.fusion.solve import RIDGES, damping, refactored, solve_change, stacked_left
from reference import lbfgs

D_IN, D_OUT = 12, 9
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}  # factors are handed out in float32


@dataclass
class Problem:
    """One layer: the rows of every concept's prompts, every concept's change, and ordinary rows."""

    rows: list[Tensor]
    pairs: list[LowRank]
    weights: list[float]
    ordinary: Tensor
    preserve: float = 0.0

    @property
    def changes(self) -> list[Tensor]:
        return [pair.alpha / pair.rank * pair.B @ pair.A for pair in self.pairs]

    def S(self) -> Tensor:
        S = sum(w * X.T @ X / len(X) for w, X in zip(self.weights, self.rows, strict=True))
        return S + self.preserve * self.ordinary.T @ self.ordinary / len(self.ordinary)

    def objective(self, change: Tensor) -> float:
        terms = [
            w * float((X @ (change - own).T).square().sum()) / len(X)
            for w, X, own in zip(self.weights, self.rows, self.changes, strict=True)
        ]
        return sum(terms) + self.preserve * float((self.ordinary @ change.T).square().sum()) / len(self.ordinary)


def problem(
    ranks: Sequence[int] = (2, 2, 2),
    *,
    rows: int = 40,
    alphas: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    preserve: float = 0.0,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = torch.logspace(0, -1.5, D_IN, dtype=torch.float64)  # inputs of a network have outlier dimensions
    return Problem(
        rows=[normal(rows + i, D_IN) * spread + normal(D_IN) * spread for i in range(len(ranks))],
        pairs=[
            LowRank(normal(rank, D_IN), normal(D_OUT, rank), float((alphas or ranks)[i]))
            for i, rank in enumerate(ranks)
        ],
        weights=list(weights or [1.0] * len(ranks)),
        ordinary=normal(rows, D_IN),
        preserve=preserve,
    )


def solved(it: Problem, *, ridge: float = 1e-2, ridge_kind: str = "trace") -> LowRank:
    """The code under test, fed with second moments alone."""
    right = [
        w * pair.scale * pair.A @ (X.T @ X / len(X)) for w, X, pair in zip(it.weights, it.rows, it.pairs, strict=True)
    ]
    return solve_change(it.S(), stacked_left(it.pairs), torch.cat(right), ridge=ridge, ridge_kind=ridge_kind)


def least_squares(it: Problem, *, ridge: float = 1e-2, ridge_kind: str = "trace") -> Tensor:
    """The other road: one tall system of weighted rows, ridge rows included, given to LAPACK."""
    diagonal = it.S().diagonal()
    damping = ridge * (diagonal.mean().repeat(D_IN) if ridge_kind == "trace" else diagonal)
    blocks = [(w / len(X)) ** 0.5 * X for w, X in zip(it.weights, it.rows, strict=True)]
    targets = [block @ change.T for block, change in zip(blocks, it.changes, strict=True)]
    blocks += [(it.preserve / len(it.ordinary)) ** 0.5 * it.ordinary, damping.sqrt().diag()]
    targets += [torch.zeros(len(it.ordinary) + D_IN, D_OUT, dtype=torch.float64)]
    return torch.linalg.lstsq(torch.cat(blocks), torch.cat(targets), driver="gelsd").solution.T


@pytest.mark.parametrize("ridge_kind", RIDGES)
@pytest.mark.parametrize("preserve", [0.0, 0.3])
@pytest.mark.parametrize(
    "case",
    [
        {"ranks": (2, 2, 2)},
        {"ranks": (1, 4, 7)},
        {"ranks": (2, 3), "alphas": (0.5, 12.0)},
        {"ranks": (2, 2), "weights": (0.2, 3.0)},
        {"ranks": (5, 5, 5, 5)},  # more ranks than the layer is wide
        {"ranks": (2, 2), "rows": 3},  # fewer rows than inputs: S alone is singular
    ],
    ids=["equal ranks", "different ranks", "different alphas", "weights", "rank above width", "few rows"],
)
def test_solution_is_that_of_dense_least_squares(case, preserve, ridge_kind):
    """One tall system of all concepts' rows, ordinary rows and the ridge has the same solution."""
    it = problem(**case, preserve=preserve)
    expected = least_squares(it, ridge_kind=ridge_kind)
    torch.testing.assert_close(solved(it, ridge_kind=ridge_kind).change(torch.float64), expected, **FLOAT32)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0])
def test_every_ridge_is_that_of_least_squares(ridge):
    it = problem(preserve=0.3)
    torch.testing.assert_close(solved(it, ridge=ridge).change(torch.float64), least_squares(it, ridge=ridge), **FLOAT32)


def test_lbfgs_agrees_with_the_exact_solution_and_never_beats_it():
    """The paper's optimiser, run to its end, arrives where the normal equation begins."""
    it = problem()
    W0 = torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    exact = solved(it, ridge=1e-12).change(torch.float64)
    converged = lbfgs.fuse_layer(W0, it.changes, it.rows, steps=2000) - W0
    stopped = lbfgs.fuse_layer(W0, it.changes, it.rows, steps=5) - W0
    torch.testing.assert_close(converged, exact, rtol=1e-4, atol=1e-4)
    assert it.objective(exact) <= it.objective(converged) * (1 + 1e-9)
    assert it.objective(exact) < 0.999 * it.objective(stopped)


def test_lbfgs_from_the_base_finds_the_smallest_change_that_a_vanishing_ridge_finds():
    """With fewer rows than inputs, L-BFGS from W0 ends at the least-norm solution, as ours does."""
    it = problem(ranks=(2, 2), rows=3)
    W0 = torch.zeros(D_OUT, D_IN, dtype=torch.float64)
    exact = solved(it, ridge=1e-9).change(torch.float64)
    converged = lbfgs.fuse_layer(W0, it.changes, it.rows, steps=2000)
    assert torch.linalg.matrix_rank(it.S()) < D_IN
    torch.testing.assert_close(converged, exact, rtol=1e-3, atol=1e-3)


def test_one_concept_comes_back_unchanged_on_its_own_rows():
    it = problem(ranks=(3,), rows=5)
    fused = solved(it, ridge=1e-10).change(torch.float64)
    torch.testing.assert_close(it.rows[0] @ fused.T, it.rows[0] @ it.changes[0].T, rtol=1e-4, atol=1e-5)


def test_two_identical_concepts_fuse_as_one():
    one = problem(ranks=(3,))
    two = Problem(one.rows * 2, one.pairs * 2, [1.0, 1.0], one.ordinary)
    torch.testing.assert_close(solved(two).change(), solved(one).change(), **FLOAT32)
    assert solved(two).rank == 3


def test_a_concept_that_changes_nothing_holds_the_others_back():
    """ΔW = 0 is a wish too: on that concept's rows the fused change is smaller than without it."""
    it = problem(ranks=(2, 2))
    it.pairs[1] = LowRank(torch.zeros(2, D_IN).double(), it.pairs[1].B, 2.0)
    alone = Problem(it.rows[:1], it.pairs[:1], [1.0], it.ordinary)
    torch.testing.assert_close(solved(it).change(torch.float64), least_squares(it), **FLOAT32)
    assert (it.rows[1] @ solved(it).change(torch.float64).T).norm() < (
        it.rows[1] @ solved(alone).change(torch.float64).T
    ).norm()


def test_changes_that_are_all_zero_fuse_to_zero():
    it = problem(ranks=(2, 1))
    it.pairs = [LowRank(pair.A, torch.zeros_like(pair.B), pair.alpha) for pair in it.pairs]
    fused = solved(it)
    assert (fused.rank, float(fused.change().abs().max())) == (1, 0.0)


def test_a_layer_that_reads_nothing_but_zeros_is_not_changed():
    it = problem(ranks=(2,))
    fused = solve_change(torch.zeros(D_IN, D_IN), it.pairs[0].B, torch.zeros(2, D_IN), ridge=1e-2)
    assert float(fused.change().abs().max()) == 0.0


@pytest.mark.parametrize("ridge_kind", RIDGES)
def test_a_ridge_below_rounding_is_the_pseudo_inverse(ridge_kind):
    """Fewer rows than inputs and a ridge below rounding give the smallest exact change."""
    it = problem(ranks=(2, 2), rows=3)
    if ridge_kind == "diagonal":  # smallest in units of each input's own size
        it.rows = [X / it.S().diagonal().sqrt() for X in it.rows]
    expected = least_squares(it, ridge=0.0)
    solution = solved(it, ridge=1e-30, ridge_kind=ridge_kind).change(torch.float64)
    torch.testing.assert_close(solution, expected, **FLOAT32)


@pytest.mark.parametrize("ridge_kind", RIDGES)
def test_an_input_that_is_always_zero_is_left_alone(ridge_kind):
    it = problem(ranks=(2, 2), preserve=0.3)
    for X in (*it.rows, it.ordinary):
        X[:, 4] = 0.0
    solution = solved(it, ridge_kind=ridge_kind).change(torch.float64)
    assert float(solution[:, 4].abs().max()) < 1e-12
    torch.testing.assert_close(solution, least_squares(it, ridge_kind=ridge_kind), **FLOAT32)


def test_preserving_more_changes_ordinary_rows_less():
    moved = []
    for preserve in (0.0, 0.1, 1.0, 10.0):
        it = problem(preserve=preserve)
        moved.append(float((it.ordinary @ solved(it).change(torch.float64).T).norm()))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.5 * moved[0]


@pytest.mark.parametrize("ranks", [1, 5, D_OUT, 30])
def test_refactored_is_the_product_to_float32_rounding(ranks):
    it = torch.Generator().manual_seed(ranks)
    left, right = (torch.randn(*shape, generator=it, dtype=torch.float64) for shape in ((D_OUT, ranks), (ranks, D_IN)))
    pair = refactored(left, right)
    error = (pair.change(torch.float64) - left @ right).norm() / (left @ right).norm()
    assert error < 4 * torch.finfo(torch.float32).eps
    assert pair.A.dtype == pair.B.dtype == torch.float32
    assert pair.rank == min(ranks, D_OUT, D_IN)
    assert pair.scale == 1.0


def test_refactored_cuts_at_the_numerical_rank_and_balances_the_factors():
    it = torch.Generator().manual_seed(3)
    B, A = (torch.randn(*shape, generator=it, dtype=torch.float64) for shape in ((D_OUT, 2), (2, D_IN)))
    pair = refactored(torch.cat([B, 1e3 * B], dim=1), torch.cat([A, -2 * A]))
    assert pair.rank == 2
    torch.testing.assert_close(pair.A.norm(dim=1), pair.B.norm(dim=0))


def test_factors_that_cancel_lose_nothing():
    """[B1 … Bn] would lose the remainder of 1e6 - 1e6; the refactored pair keeps it exactly."""
    it = torch.Generator().manual_seed(4)
    B, A, small = (torch.randn(*s, generator=it, dtype=torch.float64) for s in ((D_OUT, 1), (1, D_IN), (1, D_IN)))
    pair = refactored(torch.cat([B, B], dim=1), torch.cat([1e6 * A + small, -1e6 * A]))
    torch.testing.assert_close(pair.change(torch.float64), B @ small, rtol=1e-5, atol=1e-6)


numbers = st.integers(0, 2**31)
some = settings(max_examples=20, deadline=None)


@some
@given(seed=numbers, order=st.permutations(range(4)))
def test_the_order_of_concepts_changes_nothing_but_rounding(seed, order):
    it = problem(ranks=(1, 2, 3, 4), seed=seed)
    turned = Problem([it.rows[i] for i in order], [it.pairs[i] for i in order], it.weights, it.ordinary)
    torch.testing.assert_close(solved(turned).change(), solved(it).change(), rtol=1e-4, atol=1e-5)


@some
@given(seed=numbers, factor=st.floats(1e-3, 1e3))
def test_only_the_ratio_of_weights_counts(seed, factor):
    """Scaling all weights gives the same change, since the ridge is relative to S."""
    it = problem(seed=seed, preserve=0.2, weights=(1.0, 0.5, 2.0))
    scaled = Problem(it.rows, it.pairs, [factor * w for w in it.weights], it.ordinary, factor * it.preserve)
    torch.testing.assert_close(solved(scaled).change(), solved(it).change(), rtol=1e-4, atol=1e-5)


@some
@given(seed=numbers, factor=st.floats(0.01, 100))
def test_changes_times_a_factor_fuse_to_the_change_times_that_factor(seed, factor):
    it = problem(seed=seed)
    scaled = Problem(it.rows, [LowRank(p.A, p.B, factor * p.alpha) for p in it.pairs], it.weights, it.ordinary)
    expected = factor * solved(it).change()
    torch.testing.assert_close(solved(scaled).change(), expected, rtol=1e-4, atol=1e-5 * factor)


@some
@given(seed=numbers)
def test_weights_count_as_copies_do(seed):
    """A concept of weight 2 counts as that concept given twice."""
    it = problem(ranks=(2, 3), weights=(2.0, 1.0), seed=seed)
    copied = Problem([it.rows[0], *it.rows], [it.pairs[0], *it.pairs], [1.0] * 3, it.ordinary)
    torch.testing.assert_close(solved(it).change(), solved(copied).change(), rtol=1e-4, atol=1e-5)


@some
@given(seed=numbers, size=st.floats(1e-3, 1))
def test_no_other_change_has_a_smaller_objective(seed, size):
    it = problem(seed=seed, preserve=0.3)
    ridge = 1e-2 * float(it.S().diagonal().mean())
    fused = solved(it).change(torch.float64)
    other = fused + size * torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert it.objective(fused) + ridge * float(fused.square().sum()) < it.objective(other) + ridge * float(
        other.square().sum()
    )


@some
@given(seed=numbers, s=st.floats(1, 5), size=st.floats(1e-3, 1))
def test_sharpened_no_other_change_that_keeps_as_much_of_what_differs_has_a_smaller_objective(seed, s, size):
    """The objective is that of s = 1; s - 1 is half the multiplier of ⟨Δ, Σ wi (ΔWi - D̄) Gi⟩."""
    it = problem(seed=seed, preserve=0.3, weights=(1.0, 0.5, 2.0))
    G = [X.T @ X / len(X) for X in it.rows]
    whole, ridge = sum(it.weights), 1e-2 * float(it.S().diagonal().mean())
    common = sum(w * change for w, change in zip(it.weights, it.changes, strict=True)) / whole
    mean = sum(w * g for w, g in zip(it.weights, G, strict=True)) / whole
    N = sum(w * (change - common) @ g for w, change, g in zip(it.weights, it.changes, G, strict=True))
    right = [
        w * pair.scale * pair.A @ (g + (s - 1) * (g - mean)) for w, pair, g in zip(it.weights, it.pairs, G, strict=True)
    ]
    sharp = solve_change(it.S(), stacked_left(it.pairs), torch.cat(right), ridge=1e-2).change(torch.float64)
    step = torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    other = sharp + size * (step - (step * N).sum() / N.square().sum() * N)  # ⟨other, N⟩ = ⟨sharp, N⟩
    assert it.objective(sharp) + ridge * float(sharp.square().sum()) < it.objective(other) + ridge * float(
        other.square().sum()
    )
    if s > 1.01:
        assert float((sharp * N).sum()) > float((solved(it).change(torch.float64) * N).sum())


def test_a_large_ridge_leaves_the_scaled_sum_it_pulls_towards():
    """As λ → ∞ the rows no longer matter and Δ* is c Σ wi ΔWi; with c = 0 nothing is changed."""
    it = problem(weights=(0.5, 2.0, 1.0))
    G = [X.T @ X / len(X) for X in it.rows]
    for c in (0.0, 0.4):
        R = damping(it.S(), 1e9)
        right = [
            w * pair.scale * (pair.A @ g + c * pair.A * R) for w, pair, g in zip(it.weights, it.pairs, G, strict=True)
        ]
        solution = solve_change(it.S(), stacked_left(it.pairs), torch.cat(right), ridge=1e9).change(torch.float64)
        expected = c * sum(w * change for w, change in zip(it.weights, it.changes, strict=True))
        torch.testing.assert_close(solution, expected, rtol=1e-5, atol=1e-6)
