"""TIES (Yadav et al., NeurIPS 2023, arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

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
class TiesSettings:
    """The share kept of each change, and the factor of the merge."""

    method: ClassVar[str] = "ties"
    sum_weight: float = setting(0.6, "factor that every change is multiplied with")
    density: float = setting(0.2, "share of each change's entries that is kept, the largest")

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise RequestError(f"density {self.density}: expected a share above 0, at most 1")


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: TiesSettings,
    statistics: Statistics,
) -> Solved:
    """Trim changes to their largest entries, elect a sign for each, average those that agree.

    Raises:
        RequestError: peft is not installed.

    """
    ties = peft_merges().ties

    def merged(_layer: str, changes: list[Tensor], weight_values: Tensor) -> Tensor:
        change: Tensor = ties(changes, weight_values, settings.density)
        return change

    scaled = {token: settings.sum_weight * weight for token, weight in weights.items()}
    with any_density():
        return Solved(dense_merge(base, concepts, scaled, merged))


METHOD = Method(TiesSettings, merge, honours=frozenset({Option.WEIGHTS}))
