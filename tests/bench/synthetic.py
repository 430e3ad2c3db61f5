"""Inputs of benchmarks: random concepts, and rows with the spectrum of real activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept


@dataclass(frozen=True)
class LayerShape:
    """A layer of a real model; `rows` are those of one concept."""

    name: str
    d_in: int
    d_out: int
    rows: int
    steps: int  # of L-BFGS, as published


@dataclass(frozen=True)
class LayerProblem:
    """The inputs of the fusion of one layer."""

    W0: Tensor
    rows: list[Tensor]
    pairs: list[LowRank]


def random_concept(base: Base, seed: int, rank: int = 4, strength: float = 0.05) -> NamedConcept:
    """Return a concept that changes every layer about as much as tuning does."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    pairs = {
        layer.name: LowRank(
            normal(rank, layer.d_in) / layer.d_in**0.5, strength * normal(layer.d_out, rank), float(rank)
        )
        for layer in base.layout.attention
    }
    layers = base.layout.word_layers
    words = [float(table.float().std()) * normal(layers, 2, table.shape[1]) for table in base.token_tables]
    return NamedConcept(f"p{seed}", Concept("<cat>", "cat", base.fingerprint, pairs, tuple(words)))


def layer_problem(shape: LayerShape, concepts: int, seed: int = 0) -> LayerProblem:
    """Return rows with a power-law spectrum, as in trained networks, and their own means."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    spectrum = torch.arange(1, shape.d_in + 1).float() ** -0.5
    common = torch.linalg.qr(normal(shape.d_in, shape.d_in)).Q
    rows = []
    for _ in range(concepts):
        own = normal(shape.d_in, 16) @ normal(16, shape.d_in) / (16 * shape.d_in) ** 0.5
        rows.append(normal(shape.rows, shape.d_in) * spectrum @ (common + own) + spectrum * normal(shape.d_in))
    pairs = [
        LowRank(normal(4, shape.d_in) / shape.d_in**0.5, 0.05 * normal(shape.d_out, 4), 4.0) for _ in range(concepts)
    ]
    return LayerProblem(normal(shape.d_out, shape.d_in) / shape.d_in**0.5, rows, pairs)
