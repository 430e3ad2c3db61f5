"""What each concept does to every other, computed from the moments of fusion alone.

The sums of the equation in `solve.py` are additive, so they can be taken without any one concept.
Without concept j the solution is

    Δ₋ⱼ = [Bi]i≠j · M,   M = [wi si Ai (Gi + c R₋ⱼ)]i≠j (S₋ⱼ + R₋ⱼ)⁻¹,   S₋ⱼ = S - wj (Gj + μ G0)

and concept i keeps with it, over the layers of a group that it changes, the share

    1 - Σ ‖Xi (Δ₋ⱼ - ΔWi)ᵀ‖² / Σ ‖Xi ΔWiᵀ‖²        (each square divided by mi)
    ‖Xi (Δ - ΔWi)ᵀ‖²/mi = ⟨ΔᵀΔ, Gi⟩ - 2 ⟨BiᵀΔ, si Ai Gi⟩ + ‖Xi ΔWiᵀ‖²/mi

of its energy. ΔᵀΔ serves every i. So a concept costs one factorisation of S₋ⱼ for every distinct
input and one product of size d_in x d_in for every layer: about one more solve. What is recorded
stays as it is with j: keys and values read the text encoder that was fused with j in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mos_server.fusion.normal_equation import NormalEquations
from mos_server.fusion.solve import damped_inverse, damping

# Solutions and moments that are held at a time, so that memory does not grow with the concepts.
# Every moment is read again for each such part, so small ones are held in large parts.
AT_ONCE, BYTES_AT_ONCE = 8, 8 << 20
MeanOf = Callable[[int | None, str], Float[Tensor, "d_in d_in"]]


def kept_without(
    equations: NormalEquations, mean_of: MeanOf, count: int
) -> tuple[Float[Tensor, "count count"], Float[Tensor, " count"]]:
    """Return the share of its energy that each concept (column) keeps without another (row).

    The second value is the energy of each, Σ ‖Xi ΔWiᵀ‖²/mi. `mean_of(i, reads)` is Gi of one input,
    and G0 for None. On the diagonal, and where a concept changes no layer, the share is 1.
    """
    left_over = torch.zeros(count, count, dtype=torch.float64)
    energy = torch.zeros(count, dtype=torch.float64)
    for terms in equations.terms.values():
        for term in terms:
            energy[term.concept] += term.energy
            left_over[:, term.concept] += term.energy
    for reads, S in equations.S.items():
        size = max(AT_ONCE, BYTES_AT_ONCE // (S.numel() * S.element_size()))
        parts = [range(first, min(first + size, count)) for first in range(0, count, size)]
        for part in parts:
            left_over[part.start : part.stop] += _of_input(equations, reads, part, parts, mean_of)
    return torch.where(energy > 0, 1 - left_over / energy, 1.0).fill_diagonal_(1.0), energy


def _of_input(
    equations: NormalEquations, reads: str, part: range, parts: Sequence[range], mean_of: MeanOf
) -> Float[Tensor, "part count"]:
    """Return ⟨ΔᵀΔ, Gi⟩ - 2 ⟨BiᵀΔ, si Ai Gi⟩, summed over the layers of one input.

    Rows are the concepts of the part, which are left out one by one; columns are i.
    """
    S, G0, count = equations.S[reads], mean_of(None, reads), parts[-1].stop
    layers = equations.stacked(reads)
    products = [layer.B.T @ layer.B for layer in layers]
    changed = [tuple(layer.name for layer in layers if i in layer.energies) for i in range(count)]
    # ΔᵀΔ, summed over the layers that a concept changes: most concepts change the same ones.
    squares = {names: S.new_zeros(len(part), S.numel()) for names in dict.fromkeys(filter(None, changed))}
    left_over, means = S.new_zeros(len(part), count), _means(mean_of, reads, part)
    for row, j in enumerate(part):
        S_without = S - equations.weights[reads][j] * (means[row] + equations.preserve * G0)
        cR = equations.towards * damping(S_without, equations.ridge, equations.ridge_kind)
        right = torch.cat([layer.moments + cR * layer.changes for layer in layers])
        right[torch.cat([layer.concepts for layer in layers]) == j] = 0
        inverse = damped_inverse(S_without, equations.ridge, equations.ridge_kind)
        solutions = torch.split(inverse(right), [len(layer.changes) for layer in layers])
        for layer, BtB, M in zip(layers, products, solutions, strict=True):
            BtD = BtB @ M
            for names, square in squares.items():
                if layer.name in names:
                    square[row].view(S.shape).addmm_(M.T, BtD)
            left_over[row].index_add_(0, layer.concepts, -2 * (BtD * layer.moments).sum(dim=1) / layer.weights)
    for others in parts:
        G = means if others == part else _means(mean_of, reads, others)
        for names, square in squares.items():
            alike = [i for i in others if changed[i] == names]
            left_over[:, alike] += square @ G[[i - others.start for i in alike]].flatten(1).T
    return left_over


def _means(mean_of: MeanOf, reads: str, part: range) -> Float[Tensor, "part d_in d_in"]:
    return torch.stack([mean_of(i, reads) for i in part])
