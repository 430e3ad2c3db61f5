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
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mos_server.fusion.normal_equation import NormalEquations, Term, weighted_changes
from mos_server.fusion.solve import damped_inverse, damping, stacked_left

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
        part = max(AT_ONCE, BYTES_AT_ONCE // (S.numel() * S.element_size()))
        for first in range(0, count, part):
            block = range(first, min(first + part, count))
            left_over[first : block.stop] += _of_input(equations, reads, block, mean_of, count)
    return torch.where(energy > 0, 1 - left_over / energy, 1.0).fill_diagonal_(1.0), energy


def _of_input(
    equations: NormalEquations, reads: str, block: range, mean_of: MeanOf, count: int
) -> Float[Tensor, "block count"]:
    """Return ⟨ΔᵀΔ, Gi⟩ - 2 ⟨BiᵀΔ, si Ai Gi⟩, summed over the layers of one input.

    Rows are the concepts of the block, which are left out one by one; columns are i.
    """
    S = equations.S[reads]
    layers = [
        _Terms.of(layer.name, terms)
        for layer in equations.layers
        if layer.reads == reads and (terms := equations.terms[layer.name])
    ]
    squares = {layer.name: S.new_zeros(len(block), *S.shape) for layer in layers}
    left_over, G0 = S.new_zeros(len(block), count), mean_of(None, reads)
    means = {j: mean_of(j, reads) for j in block}  # read once, they are files
    for row, j in enumerate(block):
        S_without = S - equations.weights[reads][j] * (means[j] + equations.preserve * G0)
        cR = equations.towards * damping(S_without, equations.ridge, equations.ridge_kind)
        right = torch.cat([layer.moments + cR * layer.changes for layer in layers])
        right[torch.cat([layer.concepts for layer in layers]) == j] = 0
        inverse = damped_inverse(S_without, equations.ridge, equations.ridge_kind)
        solutions = torch.split(inverse(right), [len(layer.changes) for layer in layers])
        for layer, M in zip(layers, solutions, strict=True):
            BtD = layer.BtB @ M
            squares[layer.name][row] = M.T @ BtD
            left_over[row].index_add_(0, layer.concepts, -2 * (BtD * layer.moments).sum(dim=1) / layer.weights)
    members = {layer.name: set(layer.concepts.tolist()) for layer in layers}
    changed = [tuple(name for name, of in members.items() if i in of) for i in range(count)]
    for names in dict.fromkeys(filter(None, changed)):  # most concepts change the same layers
        whole = torch.stack([squares[name].flatten(1) for name in names]).sum(dim=0)
        for i in (i for i in range(count) if changed[i] == names):
            G = means[i] if i in means else mean_of(i, reads)
            left_over[:, i] += whole @ G.flatten()
    return left_over


@dataclass(frozen=True)
class _Terms:
    """The terms of one layer, stacked by the ranks of all concepts."""

    name: str
    concepts: Int[Tensor, " ranks"]
    weights: Float[Tensor, " ranks"]
    moments: Float[Tensor, "ranks d_in"]  # wi si Ai Gi
    changes: Float[Tensor, "ranks d_in"]  # wi si Ai
    BtB: Float[Tensor, "ranks ranks"]

    @classmethod
    def of(cls, name: str, terms: Sequence[Term]) -> _Terms:
        """Stack them."""
        B = stacked_left([term.pair for term in terms])
        ranks = torch.tensor([term.pair.rank for term in terms])
        concepts, weights = (torch.tensor(each) for each in zip(*((t.concept, t.weight) for t in terms), strict=True))
        return cls(
            name,
            concepts.repeat_interleave(ranks),
            weights.double().repeat_interleave(ranks),
            torch.cat([term.right for term in terms]),
            weighted_changes(terms),
            B.T @ B,
        )
