"""DARE (Yu et al., ICML 2024, arXiv 2311.03099)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mos_common.base_model import Base
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_common.settings import setting
from mos_server.fusion.layerwise import dense_merge
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.peft_merges import any_density, peft_merges
from mos_server.fusion.statistics import Statistics


@dataclass(frozen=True)
class DareSettings:
    """The share kept of each change, the seed, and the factor of the merge."""

    method: ClassVar[str] = "dare"
    sum_weight: float = setting(0.6, "factor that every change is multiplied with")
    density: float = setting(0.2, "share of each change's entries that is kept, at random")
    seed: int = setting(0, "seed of the random choice; judge a merge by the mean over seeds")

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise RequestError(f"density {self.density}: expected a share above 0, at most 1")


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

    scaled = {token: settings.sum_weight * weight for token, weight in weights.items()}
    with any_density():
        return Solved(dense_merge(base, concepts, scaled, merged))


METHOD = Method(DareSettings, merge, honours=frozenset({Option.WEIGHTS}))
