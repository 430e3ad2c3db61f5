"""FedAvg: the weighted mean of the changes, the paper's "weight fusion"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mos_common.base_model import Base
from mos_common.fused_model import NamedConcept
from mos_server.fusion.layerwise import weighted_sum
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.statistics import Statistics


@dataclass(frozen=True)
class AverageSettings:
    """The settings of an average: none."""

    method: ClassVar[str] = "average"


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: AverageSettings,
    statistics: Statistics,
) -> Solved:
    """Average the changes: Σ wi ΔWi / Σ wi for every layer."""
    total = sum(weights.values())
    return Solved(weighted_sum(base, concepts, {token: weight / total for token, weight in weights.items()}))


METHOD = Method(AverageSettings, merge, honours=frozenset({Option.WEIGHTS}))
