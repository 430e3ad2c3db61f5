"""What is left of each concept in a solution, from the moments of fusion alone.

    ‖Xi (Δ - ΔWi)ᵀ‖²/mi = ⟨ΔᵀΔ, Gi⟩ - 2 ⟨BiᵀΔ, si Ai Gi⟩ + ‖Xi ΔWiᵀ‖²/mi

The equations hold si Ai Gi and the last term already, and ΔᵀΔ serves every concept. So Gi is read
once for all layers of its input and for all solutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.edlora import LowRank
from mos_common.fused_model import Survival
from mos_server.fusion.normal_equation import NormalEquations, StackedTerms
from mos_server.fusion.solve import square_of

# ΔᵀΔ that are held at a time: those of XL's keys and values are 34 MB each. Moments are read again
# for each such part of the layers.
BYTES_AT_ONCE = 256 << 20
Solution = Mapping[str, LowRank]


def survival_in(
    equations: NormalEquations,
    solutions: Sequence[Solution],
    mean_of: Callable[[int, str], Float[Tensor, "d_in d_in"]],
    count: int,
) -> list[list[Survival]]:
    """Return what is left of each of `count` concepts in each solution.

    `mean_of(i, reads)` is Gi of one input. A concept that changes no layer keeps all its energy.
    """
    residuals: list[list[dict[str, float]]] = [[{} for _ in range(count)] for _ in solutions]
    energies = [0.0] * count
    for reads, S in equations.S.items():
        layers = equations.stacked(reads)
        size = max(1, BYTES_AT_ONCE // (len(solutions) * S.numel() * S.element_size()))
        for part in (layers[first : first + size] for first in range(0, len(layers), size)):
            squares = torch.stack([square_of(each[layer.name]).flatten() for layer in part for each in solutions])
            crosses = [[_cross(layer, each[layer.name], count) for each in solutions] for layer in part]
            for i in range(count):
                if not any(i in layer.energies for layer in part):
                    continue
                squared = (squares @ mean_of(i, reads).flatten()).view(len(part), len(solutions))
                for layer, square, cross in zip(part, squared.tolist(), crosses, strict=True):
                    if i in layer.energies:
                        energies[i] += layer.energies[i]
                        for of_solution, kept, taken in zip(residuals, square, cross, strict=True):
                            rest = kept - 2 * taken[i] + layer.energies[i]
                            of_solution[i][layer.name] = max(rest, 0.0)
    return [
        [
            Survival(energy_kept=1 - sum(rest.values()) / energy if energy else 1.0, residual=rest)
            for rest, energy in zip(of_solution, energies, strict=True)
        ]
        for of_solution in residuals
    ]


def _cross(layer: StackedTerms, fused: LowRank, count: int) -> list[float]:
    """Return ⟨BiᵀΔ, si Ai Gi⟩ of every concept."""
    BtD = (fused.scale * layer.B.T @ fused.B.double()) @ fused.A.double()
    of_ranks = (BtD * layer.moments).sum(dim=1) / layer.weights
    cross: list[float] = of_ranks.new_zeros(count).index_add_(0, layer.concepts, of_ranks).tolist()
    return cross
