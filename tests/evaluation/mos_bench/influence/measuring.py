"""Tolls and shares of random sets of honest concepts, alone and beside an attacker."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_server.comparison import unfit_together
from mos_server.errors import UndecidedError
from mos_server.fusion.leaving_out import Influence, RuinousConceptError, check_influence
from mos_server.fusion.methods.gradient import GradientSettings, merge
from mos_server.fusion.statistics import Statistics

ATTACKER = "mallory"


@dataclass(frozen=True)
class Honest:
    """What the concepts of one set do to each other in one group of layers.

    least: the least share of the fair part that one leaves another. toll: the greatest. multiple:
    the greatest toll over the median. loudness: the greatest over the median. left_out: who is left
    out of the set, by the rule with its defaults, and why.
    """

    rank: int
    n: int
    half: str
    group: str
    least: float
    toll: float
    multiple: float
    loudness: float
    left_out: str


@dataclass(frozen=True)
class Attack:
    """What an attacker costs n honest concepts if it is fused with them, and whether it is.

    strength: ‖ΔW‖/‖W‖ of its random changes in every layer. lost: the share of what they keep that
    the honest ones lose on average, by group. newcomer: what a typical one of them costs the others
    where there is no attacker.
    """

    rank: int
    n: int
    strength: float
    lost: Mapping[str, float]
    newcomer: Mapping[str, float]
    left_out: str

    @property
    def caught(self) -> bool:
        """True if the attacker is who is left out."""
        return self.left_out.startswith(f"<{ATTACKER}/")


class Measuring:
    """Fuses sets of concepts, and keeps their moments in `folder`."""

    def __init__(self, base: Base, folder: Path, settings: GradientSettings) -> None:
        self.base, self.settings = base, settings
        self.statistics = Statistics(base, folder, progress=lambda line: None)

    def honest(self, concepts: Sequence[NamedConcept], rank: int, half: str) -> list[Honest]:
        """Return what the concepts of a set do to each other, by group."""
        influences = self._influences(concepts)
        left_out = self._left_out(concepts, influences)
        return [
            Honest(
                rank,
                len(concepts),
                half,
                each.group.name.lower(),
                float(each.shares.min()),
                float(each.tolls.max()),
                _over_median(each.tolls),
                _over_median(each.loudness),
                left_out,
            )
            for each in influences
        ]

    def attacked(
        self, concepts: Sequence[NamedConcept], rank: int, strengths: Sequence[float], seed: int
    ) -> list[Attack]:
        """Return what random changes of each strength do to a set, and if they are left out."""
        newcomer = {each.group.name.lower(): _typical(each) for each in self._influences(concepts)}
        attacks = []
        for strength in strengths:
            everybody = [*concepts, random_changes(self.base, strength, rank, seed)]
            influences = self._influences(everybody)
            lost = {each.group.name.lower(): _lost(each, len(concepts)) for each in influences}
            left_out = self._left_out(everybody, influences)
            attacks.append(Attack(rank, len(concepts), strength, lost, newcomer, left_out))
        return attacks

    def _influences(self, concepts: Sequence[NamedConcept]) -> list[Influence]:
        everybody = replace(self.settings, least_share=None)
        weights = {named.token: 1.0 for named in concepts}
        return [*merge(self.base, concepts, weights, everybody, self.statistics).influence.values()]

    def _left_out(self, concepts: Sequence[NamedConcept], influences: Sequence[Influence]) -> str:
        """Return who is left out first and why, as a round with these settings decides it."""
        if unfit := unfit_together(concepts, self.base):
            return "; ".join(f"{token}: {reason}" for token, reason in unfit.items())
        for influence in influences:
            try:
                check_influence(influence, self.settings.least_share or 0.0)
            except (RuinousConceptError, UndecidedError) as error:
                return str(error).removeprefix("concept ")
        return ""


def random_sets(pools: Mapping[str, Sequence[str]], n: int, count: int) -> list[tuple[str, list[str]]]:
    """Return up to `count` sets of n names with the half that each is of, in turns.

    A half of n names gives one set. Where n is more than a half, both are one pool.
    """
    if n > min(map(len, pools.values())):
        pools = {" and ".join(pools): [name for pool in pools.values() for name in pool]}
    found: list[tuple[str, list[str]]] = []
    for number in range(count):
        half = list(pools)[number % len(pools)]
        drawn = half, sorted(random.Random(f"{half} {n} {number}").sample(sorted(pools[half]), n))
        if drawn not in found:
            found.append(drawn)
    return found


def named(concepts: Mapping[str, Concept], names: Sequence[str]) -> list[NamedConcept]:
    """Return the concepts of some names."""
    return [NamedConcept("bench", concepts[name]) for name in names]


def random_changes(base: Base, strength: float, rank: int, seed: int) -> NamedConcept:
    """Return a concept that changes every layer at random, by a share of the layer's norm."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    pairs = {}
    for layer in base.layout.attention:
        A, B = normal(rank, layer.d_in), normal(layer.d_out, rank)
        norm = float(layer.module.weight.detach().float().norm())
        pairs[layer.name] = LowRank(A, B * (strength * norm / float((B @ A).norm())), float(rank))
    spread = float(base.token_table.float().std())
    words = spread * normal(len(base.layout.cross_attentions), 2, base.token_table.shape[1])
    return NamedConcept(ATTACKER, Concept("<x>", "person", base.fingerprint, pairs, (words,)))


def _lost(influence: Influence, honest: int) -> float:
    """Return the share that the honest ones lose to the last concept."""
    without, kept = influence.without[honest, :honest], influence.kept[:honest]
    return float((without - kept).sum() / without.sum())


def _typical(influence: Influence) -> float:
    """Return the median share that others lose to a concept of the set."""
    return float(influence.tolls.quantile(0.5)) / len(influence.tokens)


def _over_median(values: torch.Tensor) -> float:
    return float(values.max() / values.quantile(0.5))


GROUPS = tuple(group.name.lower() for group in Group)
