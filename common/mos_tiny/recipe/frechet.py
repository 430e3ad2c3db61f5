"""The Fréchet distance of two sets of pictures, in the scorer's features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Features = Float[Tensor, "n features"]


def frechet_distance(measured: Features, reference: Features, kept: int = 64) -> float:
    """Return 1000 times the Fréchet distance in the `kept` main directions of `reference`.

    The distance is |m₁-m₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½). In all 1280 directions, that of a few
    hundred pictures would depend mostly on their number.
    """
    centre = reference.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(reference.double() - centre, full_matrices=False)
    a, b = ((x.double() - centre) @ directions[:kept].T for x in (measured, reference))
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return 1000 * float(((a.mean(dim=0) - b.mean(dim=0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * cross)
