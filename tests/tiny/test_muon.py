"""Muon's steps."""

from __future__ import annotations

import torch

from mos_tiny.recipe.muon import Muon, orthogonal


def test_muon_steps_along_the_orthogonal_factor():
    """An SVD gives the expected directions; all singular values are near 1."""
    matrix = torch.randn(1, 6, 20, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    assert ((torch.linalg.svdvals(found) > 0.6) & (torch.linalg.svdvals(found) < 1.3)).all()
    assert torch.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97
    weight = torch.nn.Parameter(torch.zeros(20, 6))
    weight.grad = matrix[0].T.clone()
    Muon([weight], lr=0.5, weight_decay=0).step()
    assert torch.cosine_similarity(-weight.detach().flatten(), (u @ v)[0].T.flatten(), dim=0) > 0.97
