"""The scaled sum of the changes, the cheap alternative that any tool offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mos_common.base_model import Base
from mos_common.fused_model import NamedConcept
from mos_common.settings import setting
from mos_server.fusion.layerwise import weighted_sum
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.statistics import Statistics


@dataclass(frozen=True)
class SumSettings:
    """The factor of the sum."""

    method: ClassVar[str] = "sum"
    sum_weight: float = setting(0.6, "factor that every change is multiplied with")


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: SumSettings,
    statistics: Statistics,
) -> Solved:
    """Add up the changes: sum_weight · Σ wi ΔWi for every layer."""
    scaled = {token: settings.sum_weight * weight for token, weight in weights.items()}
    return Solved(weighted_sum(base, concepts, scaled))


METHOD = Method(SumSettings, merge, honours=frozenset({Option.WEIGHTS}))
