"""TIES (Yadav et al., NeurIPS 2023, arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mos_common.base_model import Base
from mos_common.fused_model import NamedConcept
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.peft_merges import SparseSettings, peft_merges, sparse_merge
from mos_server.fusion.statistics import Statistics


@dataclass(frozen=True)
class TiesSettings(SparseSettings):
    """The share kept of each change, its largest entries, and the factor of the merge."""

    method: ClassVar[str] = "ties"


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

    return Solved(sparse_merge(base, concepts, weights, settings, merged))


METHOD = Method(TiesSettings, merge, honours=frozenset({Option.WEIGHTS}))
