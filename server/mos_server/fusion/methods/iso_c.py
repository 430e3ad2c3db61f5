"""Iso-C, the isotropic merge (Marczak et al., ICML 2025, arXiv 2502.04959, section 4.1).

    Σi wi ΔWi = U diag(σ) Vᵀ,    Δ = α σ̄ U Vᵀ,    σ̄ the mean of σ

A sum has a few directions that all concepts share, which drown the others; here all count alike.

The paper merges changes of full rank and takes the mean over all min(d_out, d_in) singular values.
A sum of low-rank changes is 0 beyond its rank r: singular vectors are arbitrary there, and would be
raised to σ̄ with the rest. So U, σ and V are those of the r nonzero values, and so is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from mos_common.base_model import Base
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_common.settings import setting
from mos_server.fusion.layerwise import weighted_halves
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.solve import balanced_pair, singular_triple
from mos_server.fusion.statistics import Statistics


@dataclass(frozen=True)
class IsoCSettings:
    """The factor of the merge, which the paper chooses on validation data."""

    method: ClassVar[str] = "iso-c"
    sum_weight: float = setting(1.0, "α, factor of the merged change")

    def __post_init__(self) -> None:
        if not self.sum_weight >= 0:
            raise RequestError(f"sum_weight {self.sum_weight}: expected a factor of at least 0")


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: IsoCSettings,
    statistics: Statistics,
) -> Solved:
    """Add up the changes, and make all singular values of the sum equal to their mean."""
    changes = {}
    for name, left, right in weighted_halves(base, concepts, weights):
        U, sigma, Vt = singular_triple(left, right)
        flat = torch.full_like(sigma, settings.sum_weight * float(sigma.mean()))
        changes[name] = balanced_pair(U, flat, Vt)
    return Solved(changes)


METHOD = Method(IsoCSettings, merge, honours=frozenset({Option.WEIGHTS}))
