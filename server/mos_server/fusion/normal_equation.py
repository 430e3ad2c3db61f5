"""The normal equations of one group of layers: add concepts one by one, then solve every layer.

Memory holds S of every distinct input and Σ ri rows for every layer, but no activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.layers import Layer
from mos_server.fusion.moments import Moments
from mos_server.fusion.solve import Inverse, damped_inverse, damping, energy_given, energy_of, refactored, stacked_left


@dataclass(frozen=True)
class Term:
    """What one concept (by its number) adds to the right-hand side of one layer: wi ΔWi Gi."""

    concept: int
    pair: LowRank
    weight: float
    right: Float[Tensor, "rank d_in"]  # wi si Ai Gi
    energy: float  # ‖Xi ΔWiᵀ‖²/mi


@dataclass(frozen=True)
class StackedTerms:
    """The terms of one layer, stacked by the ranks of all concepts."""

    name: str
    concepts: Int[Tensor, " ranks"]
    weights: Float[Tensor, " ranks"]
    moments: Float[Tensor, "ranks d_in"]  # wi si Ai Gi
    changes: Float[Tensor, "ranks d_in"]  # wi si Ai
    B: Float[Tensor, "d_out ranks"]
    energies: Mapping[int, float]  # ‖Xi ΔWiᵀ‖²/mi of each concept that changes the layer

    @classmethod
    def of(cls, name: str, terms: Sequence[Term]) -> StackedTerms:
        """Stack them."""
        ranks = torch.tensor([term.pair.rank for term in terms])
        concepts, weights = (torch.tensor(each) for each in zip(*((t.concept, t.weight) for t in terms), strict=True))
        return cls(
            name,
            concepts.repeat_interleave(ranks),
            weights.double().repeat_interleave(ranks),
            torch.cat([term.right for term in terms]),
            weighted_changes(terms),
            stacked_left([term.pair for term in terms]),
            {term.concept: term.energy for term in terms},
        )


class NormalEquations:
    """S and the right-hand side of every layer of a group.

    Energies are measured against those of the base on ordinary prompts.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        ordinary: Moments,
        *,
        preserve: float,
        ridge: float,
        ridge_kind: str,
        towards: float,
        cap: float,
    ) -> None:
        self.layers, self._ordinary = layers, ordinary
        self.preserve, self.ridge, self.ridge_kind, self.towards, self.cap = preserve, ridge, ridge_kind, towards, cap
        self.S = {layer.reads: torch.zeros(layer.d_in, layer.d_in, dtype=torch.float64) for layer in layers}
        self.weights: dict[str, list[float]] = {reads: [] for reads in self.S}
        self.terms: dict[str, list[Term]] = {layer.name: [] for layer in layers}

    def add(self, concept: Concept, moments: Moments, weight: float = 1.0) -> None:
        """Add wi (Gi + μ G0) to S and wi si Ai Gi to the right-hand sides.

        wi is `weight`, or less if the concept's energy is out of bounds. Since μ counts once for
        every concept, ordinary prompts weigh as much against thirty concepts as against three.
        """
        for reads in self.S:
            G = moments.mean(reads)
            pairs = {
                layer: concept.pairs[layer.name]
                for layer in self.layers
                if layer.reads == reads and layer.name in concept.pairs
            }
            moments_of = {layer: pair.scale * pair.A.double() @ G for layer, pair in pairs.items()}
            energies = {layer: energy_given(pair, moments_of[layer]) for layer, pair in pairs.items()}
            w = weight * self._bounded(reads, G, energies)
            G0 = self._ordinary.mean(reads)
            self.S[reads].add_(G, alpha=w).add_(G0, alpha=w * self.preserve)
            for layer, pair in pairs.items():
                term = Term(len(self.weights[reads]), pair, w, w * moments_of[layer], energies[layer])
                self.terms[layer.name].append(term)
            self.weights[reads].append(w)

    def solve(self, sharpen: float = 1.0) -> dict[str, LowRank]:
        """Return Δ* of every layer that a concept changes; `sharpen` is s."""
        return {name: refactored(left, right) for name, left, right in self._products(sharpen)}

    def solve_uncut(self) -> dict[str, LowRank]:
        """Return the same with s = 1, of the summed rank and in float64, which serves measuring."""
        return {name: LowRank(right, left, float(len(right))) for name, left, right in self._products(1.0)}

    def _products(self, sharpen: float) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the name of every layer, [B1 … Bn], and what Δ* has to its right."""
        inverses: dict[str, Inverse] = {}
        for layer in self.layers:
            if not (terms := self.terms[layer.name]):
                continue
            if layer.reads not in inverses:
                inverses = {layer.reads: damped_inverse(self.S[layer.reads], self.ridge, self.ridge_kind)}
            right = self.right(terms, self.S[layer.reads])
            if sharpen != 1:
                right += (sharpen - 1) * self._standing_out(terms, layer.reads)
            yield layer.name, stacked_left([term.pair for term in terms]), inverses[layer.reads](right)

    def stacked(self, reads: str) -> list[StackedTerms]:
        """Return the terms of every changed layer that reads one input."""
        layers = [layer for layer in self.layers if layer.reads == reads and self.terms[layer.name]]
        return [StackedTerms.of(layer.name, self.terms[layer.name]) for layer in layers]

    def right(self, terms: Sequence[Term], S: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "ranks d_in"]:
        """Return [w1 s1 A1 (G1 + c R); …] of some terms; R is the ridge for S."""
        stacked = torch.cat([term.right for term in terms])
        if not self.towards:
            return stacked
        R = damping(S, self.ridge, self.ridge_kind)
        return stacked + self.towards * weighted_changes(terms) * R

    def _standing_out(self, terms: Sequence[Term], reads: str) -> Float[Tensor, "ranks d_in"]:
        """Return [w1 s1 A1 (G1 - Ḡ); …], with Ḡ = S/Σ wi - μ G0 of all concepts."""
        mean = self.S[reads] / sum(self.weights[reads]) - self.preserve * self._ordinary.mean(reads)
        return torch.cat([term.right for term in terms]) - weighted_changes(terms) @ mean

    def drift(self, changes: Mapping[str, LowRank]) -> float:
        """Return Σ ‖X0 Δᵀ‖² / Σ ‖X0 W0ᵀ‖² over the changed layers.

        It is the effect of fusion on ordinary prompts, as a share of the layers' outputs.
        """
        changed = [layer for layer in self.layers if layer.name in changes]
        moved = sum(energy_of(changes[layer.name], self._ordinary.mean(layer.reads)) for layer in changed)
        whole = sum(self._written[layer.name] for layer in changed)
        return moved / whole if whole else 0.0

    def _bounded(self, reads: str, G: Tensor, energies: Mapping[Layer, float]) -> float:
        """Return the factor that brings a concept within `cap` times the base's energies.

        It bounds the concept's inputs, and its effect on every layer that reads them.
        """
        ratios = [_ratio(float(G.trace()), float(self._ordinary.mean(reads).trace()))]
        ratios += [_ratio(energy, self._written[layer.name]) for layer, energy in energies.items()]
        return min(1.0, *(self.cap / ratio for ratio in ratios if ratio > 0))

    @cached_property
    def _written(self) -> dict[str, float]:
        """‖X0 W0ᵀ‖²/m0 of every layer: the energy of the base's output on ordinary prompts."""
        energies = {}
        for layer in self.layers:
            W0 = layer.module.weight.detach().flatten(1).float().cpu()
            energies[layer.name] = float(((W0 @ self._ordinary.mean(layer.reads).float()) * W0).sum())
        return energies


def weighted_changes(terms: Sequence[Term]) -> Float[Tensor, "ranks d_in"]:
    """Return [w1 s1 A1; …]."""
    return torch.cat([term.weight * term.pair.scale * term.pair.A.double() for term in terms])


def _ratio(energy: float, of_base: float) -> float:
    return energy / of_base if of_base > 0 else 0.0
