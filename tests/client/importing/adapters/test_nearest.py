"""The nearest change of a given rank, beside the whole singular value decomposition."""

from __future__ import annotations

import pytest
import torch

from mos_client.importing.adapters.nearest import nearest, square_norm
from mos_common.edlora import LowRank


def test_a_change_of_lower_rank_is_the_nearest_one():
    """By Eckart and Young, the reference is the SVD of the whole matrix."""
    pair = LowRank(torch.randn(6, 20), torch.randn(30, 6), 4.0)
    U, sigma, Vt = torch.linalg.svd(pair.change(torch.float64))
    for change in (pair, pair.change()):
        best = nearest(change, 3)
        expected = U[:, :3] @ torch.diag(sigma[:3]) @ Vt[:3]
        torch.testing.assert_close(best.change(torch.float64), expected, rtol=1e-4, atol=1e-4)
        assert square_norm(best) / square_norm(change) == pytest.approx(
            float(sigma[:3].square().sum() / sigma.square().sum()), rel=1e-5
        )
    whole = nearest(pair, 50)
    assert whole.rank == 6
    torch.testing.assert_close(whole.change(), pair.change(), rtol=1e-4, atol=1e-4)
    assert square_norm(nearest(LowRank(torch.zeros(2, 3), torch.zeros(3, 2), 1.0), 1)) == 0


def test_a_large_change_is_reduced_almost_as_well_as_by_the_whole_svd_and_always_alike():
    """With a spectrum that falls slowly, where a randomised SVD has it hardest."""
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(900, 800, generator=g) * torch.linspace(1, 0.2, 800)
    sigma = torch.linalg.svdvals(matrix)
    torch.manual_seed(1)
    first = nearest(matrix, 16)
    torch.manual_seed(2)
    assert torch.equal(first.A, nearest(matrix, 16).A)
    assert torch.initial_seed() == 2
    assert square_norm(first) > 0.99 * float(sigma[:16].square().sum())
