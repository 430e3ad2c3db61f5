"""DARE (Yu et al., ICML 2024, arXiv 2311.03099)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mos_common.base_model import Base
from mos_common.fused_model import NamedConcept
from mos_common.settings import setting
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.peft_merges import SparseSettings, peft_merges, sparse_merge
from mos_server.fusion.statistics import Statistics


@dataclass(frozen=True)
class DareSettings(SparseSettings):
    """The share kept of each change, at random, the seed, and the factor of the merge."""

    method: ClassVar[str] = "dare"
    seed: int = setting(0, "seed of the random choice; judge a merge by the mean over seeds")


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: DareSettings,
    statistics: Statistics,
) -> Solved:
    """Drop entries of each change at random, rescale the rest by 1/density, add them up.

    The choice depends only on the seed and the layer's name, so a merge can be repeated.

    Raises:
        RequestError: peft is not installed.

    """
    dare = peft_merges().dare_linear

    def merged(layer: str, changes: list[Tensor], weight_values: Tensor) -> Tensor:
        name = f"{settings.seed} {layer}".encode()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(hashlib.sha256(name).hexdigest()[:12], 16))
            change: Tensor = dare(changes, weight_values, settings.density)
        return change

    return Solved(sparse_merge(base, concepts, weights, settings, merged))


METHOD = Method(DareSettings, merge, honours=frozenset({Option.WEIGHTS}))
