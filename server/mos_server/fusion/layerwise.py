"""Merge changes layer by layer, without looking at activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group, Layer
from mos_server.fusion.solve import refactored, stacked_left


def changed_layers(base: Base, concepts: Sequence[NamedConcept], group: Group) -> list[Layer]:
    """Return the layers of one group that at least one concept changes, in the order of fusion."""
    changed = {name for named in concepts for name in named.concept.pairs}
    return [layer for layer in base.layout.by_group[group] if layer.name in changed]


def weighted_sum(base: Base, concepts: Sequence[NamedConcept], weights: Mapping[str, float]) -> dict[str, LowRank]:
    """Return Σi wi ΔWi for every layer: FedAvg with wi = 1/n, the scaled sum with anything else."""
    return {name: refactored(left, right) for name, left, right in weighted_halves(base, concepts, weights)}


def weighted_halves(
    base: Base, concepts: Sequence[NamedConcept], weights: Mapping[str, float]
) -> Iterator[tuple[str, Float[Tensor, "d_out ranks"], Float[Tensor, "ranks d_in"]]]:
    """Give the two halves of every layer's sum: [B1 … Bn] and [w1 s1 A1; …; wn sn An]."""
    for layer in base.layout.layers:
        weighted = [(weights[named.token], pair) for named in concepts if (pair := named.concept.pairs.get(layer.name))]
        if weighted:
            right = torch.cat([weight * pair.scale * pair.A.double() for weight, pair in weighted])
            yield layer.name, stacked_left([pair for _, pair in weighted]), right


def dense_merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    merge: Callable[[str, list[Tensor], Tensor], Tensor],
) -> dict[str, LowRank]:
    """Merge the dense ΔWi of one layer after another.

    The result may have any rank and is factored exactly. `merge` takes the layer's name, every
    ΔWi (d_out x d_in, zero where a concept leaves the layer alone) and the weights.
    """
    weight_values = torch.tensor([weights[named.token] for named in concepts])
    changes = {}
    for layer in base.layout.layers:
        pairs = [named.concept.pairs.get(layer.name) for named in concepts]
        if any(pairs):
            dense = merge(layer.name, dense_changes(pairs, layer), weight_values)
            changes[layer.name] = refactored(dense.double(), torch.eye(layer.d_in, dtype=torch.float64))
    return changes


def dense_changes(pairs: Sequence[LowRank | None], layer: Layer) -> list[Tensor]:
    """Return each ΔWi of one layer (d_out x d_in, float32, on the CPU), zero for none."""
    nothing = torch.zeros(layer.d_out, layer.d_in)
    return [pair.change() if pair else nothing for pair in pairs]
