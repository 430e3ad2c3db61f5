"""TSV-M, the merge of task singular vectors (Gargiulo et al., CVPR 2025, arXiv 2412.00081).

    ΔWi ≈ Ui diag(σi) Viᵀ, its largest k singular values,    k = min(d_out, d_in)/n rounded down
    Δ = α ⟂[U1 … Un] diag(w1 σ1, …, wn σn) ⟂[V1 … Vn]ᵀ

⟂X = P Qᵀ of X = P diag(s) Qᵀ is the matrix with orthonormal columns that is nearest to X
(Procrustes), so that no concept's singular vectors overlap another's. The rank is at most n k, and
the factors fit the layer. A concept of rank below k has no more than its rank; with more concepts
than the layer has dimensions, each keeps one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_common.settings import setting
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.solve import refactored, singular_triple
from mos_server.fusion.statistics import Statistics


@dataclass(frozen=True)
class TsvMSettings:
    """The factor of the merge, which the published code chooses on validation data."""

    method: ClassVar[str] = "tsv-m"
    sum_weight: float = setting(1.0, "α, factor of the merged change")


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: TsvMSettings,
    statistics: Statistics,
) -> Solved:
    """Merge the largest singular vectors of every change, made orthogonal to each other's."""
    changes = {}
    for layer in base.layout.layers:
        weighted = [
            (settings.sum_weight * weights[named.token], pair)
            for named in concepts
            if (pair := named.concept.pairs.get(layer.name))
        ]
        if weighted:
            changes[layer.name] = merged_layer([pair for _, pair in weighted], [weight for weight, _ in weighted])
    return Solved(changes)


def merged_layer(pairs: Sequence[LowRank], factors: Sequence[float]) -> LowRank:
    """Return Δ of the equation above, with α wi for `factors`."""
    (d_out, _), (_, d_in) = pairs[0].B.shape, pairs[0].A.shape
    k = max(min(d_out, d_in) // len(pairs), 1)
    triples = [singular_triple(pair.B, pair.scale * pair.A.double()) for pair in pairs]
    U = nearest_orthonormal(torch.cat([U[:, :k] for U, _, _ in triples], dim=1))
    V = nearest_orthonormal(torch.cat([Vt[:k].T for _, _, Vt in triples], dim=1))
    sigma = torch.cat([factor * sigma[:k] for factor, (_, sigma, _) in zip(factors, triples, strict=True)])
    return refactored(U * sigma, V.T)


def nearest_orthonormal(X: Float[Tensor, "d columns"]) -> Float[Tensor, "d columns"]:
    """Return the matrix with orthonormal columns (rows, if it is wide) that is nearest to X."""
    P, _, Qt = torch.linalg.svd(X, full_matrices=False)
    nearest: Tensor = P @ Qt
    return nearest


METHOD = Method(TsvMSettings, merge, honours=frozenset({Option.WEIGHTS}))
