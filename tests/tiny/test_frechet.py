"""The Fréchet distance against cases computed by hand."""

from __future__ import annotations

import pytest
import torch

from mos_tiny.recipe.frechet import frechet_distance


def test_the_frechet_distance_of_gaussians_is_what_the_formula_says():
    """A shift by d gives 1000·|d|², a scale by s in k directions 1000·k·(s-1)², up to sampling."""
    rows = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(rows, rows, kept=4) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows + torch.tensor([0.3, 0, 0, 0.4]), rows, kept=4) == pytest.approx(250, rel=1e-3)
    assert frechet_distance(2 * (rows - rows.mean(dim=0)), rows, kept=4) == pytest.approx(4000, rel=0.1)
