"""SSR-Merge: the published code's case, the least squares that it solves, and what it records."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.layers import Group
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.ssr_merge import Router, SsrMergeSettings
from reference import dense, rival_cases

RANKS, D_OUT, D_IN = (2, 3), 7, 9


def problem(seed: int = 0) -> tuple[list[LowRank], list[Tensor]]:
    """Return two pairs and the rows of each."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        LowRank(torch.randn(r, D_IN, generator=generator), torch.randn(D_OUT, r, generator=generator), 2.0 * r)
        for r in RANKS
    ]
    return pairs, [torch.randn(20, D_IN, generator=generator, dtype=torch.float64) for _ in RANKS]


def routed(pairs: list[LowRank], rows: list[Tensor], ridge: float, weights: tuple[float, ...] = (1.0, 1.0)) -> Tensor:
    router = Router(pairs)
    for k, X in enumerate(rows):
        router.add(k, X.T @ X / len(X), weights[k])
    return router.change(ridge).change(torch.float64)


def test_a_layer_is_merged_as_by_the_published_code():
    case = rival_cases.case("ssr-merge")
    pairs = [LowRank(A.float(), B.float(), float(len(A))) for A, B in zip(case["A"], case["B"], strict=True)]
    torch.testing.assert_close(routed(pairs, case["X"], case["ridge"]), case["merged"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (4.0, 0.5)])
def test_the_router_is_the_least_squares_solution(weights):
    """Against stacked dense least squares of all signals, the ridge as rows of its own."""
    pairs, rows = problem()
    A = torch.cat([pair.A.double() for pair in pairs])
    B = torch.cat([pair.scale * pair.B.double() for pair in pairs], dim=1)
    signals, wanted = [0.1 * torch.eye(5, dtype=torch.float64)], [torch.zeros(5, 5, dtype=torch.float64)]
    for k, X in enumerate(rows):
        root, Z = (weights[k] / sum(weights) / len(X)) ** 0.5, X @ A.T
        own = torch.zeros_like(Z)
        own[:, slice(0, 2) if k == 0 else slice(2, 5)] = Z[:, slice(0, 2) if k == 0 else slice(2, 5)]
        signals.append(root * Z)
        wanted.append(root * own)
    R = torch.linalg.lstsq(torch.cat(signals), torch.cat(wanted)).solution.T
    torch.testing.assert_close(routed(pairs, rows, 0.01, weights), B @ R @ A, rtol=1e-5, atol=1e-5)


def test_signals_that_do_not_overlap_reach_their_own_part_unchanged():
    """Each concept's inputs in two directions of their own: both keep what they do there."""
    pairs, rows = problem(1)
    rows = [rows[0][:, :2] @ torch.eye(9, dtype=torch.float64)[:2], rows[1][:, :2] @ torch.eye(9).double()[4:6]]
    fused = routed(pairs, rows, 1e-10)
    for X, pair in zip(rows, pairs, strict=True):
        torch.testing.assert_close(X @ fused.T, X @ pair.change(torch.float64).T, rtol=1e-5, atol=1e-5)


def test_a_change_that_nobody_else_makes_is_kept_to_the_rounding():
    pairs, rows = problem()
    router = Router([None, pairs[1]])
    router.add(1, rows[1].T @ rows[1] / 20, 1.0)
    torch.testing.assert_close(router.change(1e-4).change(), pairs[1].change(), rtol=1e-5, atol=1e-5)


def test_its_state_is_the_square_of_the_ranks_however_wide_the_layer_is():
    pairs = [LowRank(torch.ones(r, 4000), torch.ones(10, r), float(r)) for r in RANKS]
    router = Router(pairs)
    assert router.G.shape == router.Q.shape == (5, 5)


def test_concepts_are_recorded_on_their_own_models(tiny, two):
    """Against activations stored by a dense implementation, in the first layer of the text encoder.

    All positions of "photo of a V" count, padding too.
    """
    fused = fuse(tiny, two, SsrMergeSettings(ridge=0.01)).changes
    layer = next(layer for layer in tiny.layout.attention if layer.group is Group.TEXT)
    pairs = [named.concept.pairs[layer.name] for named in two]
    rows = []
    for named in two:
        with dense.added(tiny, dense.dense(named.concept)), dense.storing(tiny, Group.TEXT, slice(None)) as stored:
            for k in range(len(tiny.layout.cross_attentions)):
                dense.encode(tiny, f"photo of a {named.concept.name}", named.concept, k)
        rows.append(torch.cat(stored[layer.name]))
    expected = routed(pairs, rows, 0.01)
    size = float(expected.norm())
    torch.testing.assert_close(fused[layer.name].change(torch.float64), expected, rtol=0, atol=1e-3 * size)


@pytest.mark.parametrize("wrong", [{"ridge": 0.0}, {"steps": 0}, {"contexts": ()}, {"batch": 0}], ids=str)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError):
        SsrMergeSettings(**wrong)
