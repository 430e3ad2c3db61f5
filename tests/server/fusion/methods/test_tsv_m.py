"""TSV-M: the published code's case, a concept alone, and what rank is left."""

from __future__ import annotations

import torch

from mos_common.edlora import LowRank
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.tsv_m import TsvMSettings, merged_layer, nearest_orthonormal
from reference import dense, rival_cases


def random_pairs(count: int, d_out: int, d_in: int, rank: int) -> list[LowRank]:
    generator = torch.Generator().manual_seed(count)
    halves = [
        (torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator))
        for _ in range(count)
    ]
    return [LowRank(A, B, float(rank)) for A, B in halves]


def test_changes_are_cut_and_merged_as_by_the_published_code():
    case = rival_cases.case("tsv-m")
    pairs = [LowRank(A.float(), B.float(), float(len(A))) for A, B in zip(case["A"], case["B"], strict=True)]
    merged = merged_layer(pairs, [1.0, 1.0])
    assert merged.rank == 4  # two of three singular values each
    torch.testing.assert_close(merged.change(torch.float64), case["merged"], rtol=1e-5, atol=1e-5)


def test_one_concept_alone_is_given_back(tiny, three):
    fused = fuse(tiny, three[1:2], TsvMSettings()).changes
    own = dense.dense(three[1].concept)
    assert fused.keys() == own.keys()
    for name, change in own.items():
        size = float(change.norm())
        assert fused[name].rank == three[1].concept.pairs[name].rank
        torch.testing.assert_close(fused[name].change(torch.float64), change, rtol=0, atol=1e-5 * size)


def test_concepts_in_orthogonal_directions_add_up():
    """Where nothing overlaps there is nothing to make orthogonal: the weighted sum."""
    one, other = random_pairs(2, 12, 10, 3)
    one.A[:, 5:], one.B[6:] = 0, 0
    other.A[:, :5], other.B[:6] = 0, 0
    expected = 0.5 * one.change(torch.float64) + 2 * other.change(torch.float64)
    merged = merged_layer([one, other], [0.5, 2.0]).change(torch.float64)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)


def test_singular_values_are_those_of_the_concepts():
    """No singular vector overlaps another's, so each keeps its own value, whoever it is beside."""
    pairs = random_pairs(3, 12, 10, 2)
    values = torch.cat([torch.linalg.svdvals(pair.change(torch.float64))[:2] for pair in pairs])
    merged = torch.linalg.svdvals(merged_layer(pairs, [1.0] * 3).change(torch.float64))
    torch.testing.assert_close(merged[:6], values.sort(descending=True).values, rtol=1e-5, atol=1e-5)
    assert float(merged[6:].max()) < 1e-5


def test_the_rank_never_exceeds_the_layer():
    for count in (2, 3, 7, 15):
        assert merged_layer(random_pairs(count, 12, 10, 4), [1.0] * count).rank <= 10


def test_the_nearest_orthonormal_matrix_is_that_of_whitening():
    """Against X (XᵀX)^-½, by an eigendecomposition."""
    X = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(X.T @ X)
    torch.testing.assert_close(nearest_orthonormal(X), X @ (vectors * values.rsqrt()) @ vectors.T)
