"""The normal equations of one group of layers: add concepts one by one, then solve every layer.

Memory holds S of every distinct input and Σ ri rows for every layer, but no activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.layers import Layer
from mos_server.fusion.moments import Moments
from mos_server.fusion.solve import Inverse, damped_inverse, damping, energy_of, refactored, stacked_left


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
        self._S = {layer.reads: torch.zeros(layer.d_in, layer.d_in, dtype=torch.float64) for layer in layers}
        self._left: dict[str, list[LowRank]] = {layer.name: [] for layer in layers}
        self._right: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
        self._weights: dict[str, list[float]] = {layer.name: [] for layer in layers}

    def add(self, concept: Concept, moments: Moments, weight: float = 1.0) -> None:
        """Add wi (Gi + μ G0) to S and wi si Ai Gi to the right-hand sides.

        wi is `weight`, or less if the concept's energy is out of bounds. Since μ counts once for
        every concept, ordinary prompts weigh as much against thirty concepts as against three.
        """
        for reads in self._S:
            G = moments.mean(reads)
            pairs = {
                layer: concept.pairs[layer.name]
                for layer in self.layers
                if layer.reads == reads and layer.name in concept.pairs
            }
            w = weight * self._bounded(reads, G, pairs)
            G0 = self._ordinary.mean(reads)
            self._S[reads].add_(G, alpha=w).add_(G0, alpha=w * self.preserve)
            for layer, pair in pairs.items():
                self._left[layer.name].append(pair)
                self._right[layer.name].append(w * pair.scale * pair.A.double() @ G)
                self._weights[layer.name].append(w)

    def solve(self) -> dict[str, LowRank]:
        """Return Δ* of every layer that a concept changes."""
        inverses: dict[str, Inverse] = {}
        changes = {}
        for layer in self.layers:
            if not self._left[layer.name]:
                continue
            if layer.reads not in inverses:
                inverses = {layer.reads: damped_inverse(self._S[layer.reads], self.ridge, self.ridge_kind)}
            right = inverses[layer.reads](torch.cat(self._right[layer.name]) + self._pull(layer))
            changes[layer.name] = refactored(stacked_left(self._left[layer.name]), right)
        return changes

    def _pull(self, layer: Layer) -> Tensor | float:
        """Return c R times wi si Ai, which the ridge adds to the right-hand side if c is not 0."""
        if not self.towards:
            return 0.0
        R = damping(self._S[layer.reads], self.ridge, self.ridge_kind)
        weighted = zip(self._weights[layer.name], self._left[layer.name], strict=True)
        return self.towards * torch.cat([w * pair.scale * pair.A.double() for w, pair in weighted]) * R

    def drift(self, changes: Mapping[str, LowRank]) -> float:
        """Return Σ ‖X0 Δᵀ‖² / Σ ‖X0 W0ᵀ‖² over the changed layers.

        It is the effect of fusion on ordinary prompts, as a share of the layers' outputs.
        """
        changed = [layer for layer in self.layers if layer.name in changes]
        moved = sum(energy_of(changes[layer.name], self._ordinary.mean(layer.reads)) for layer in changed)
        whole = sum(self._written[layer.name] for layer in changed)
        return moved / whole if whole else 0.0

    def _bounded(self, reads: str, G: Tensor, pairs: Mapping[Layer, LowRank]) -> float:
        """Return the factor that brings a concept within `cap` times the base's energies.

        It bounds the concept's inputs, and its effect on every layer that reads them.
        """
        ratios = [_ratio(float(G.trace()), float(self._ordinary.mean(reads).trace()))]
        ratios += [_ratio(energy_of(pair, G), self._written[layer.name]) for layer, pair in pairs.items()]
        return min(1.0, *(self.cap / ratio for ratio in ratios if ratio > 0))

    @cached_property
    def _written(self) -> dict[str, float]:
        """‖X0 W0ᵀ‖²/m0 of every layer: the energy of the base's output on ordinary prompts."""
        energies = {}
        for layer in self.layers:
            W0 = layer.module.weight.detach().flatten(1).float().cpu()
            energies[layer.name] = float(((W0 @ self._ordinary.mean(layer.reads).float()) * W0).sum())
        return energies


def _ratio(energy: float, of_base: float) -> float:
    return energy / of_base if of_base > 0 else 0.0
