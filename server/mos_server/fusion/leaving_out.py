"""Decide from the influence of concepts on each other which of them is left out.

ki is what concept i keeps with everybody and k₋ji what it keeps without j, so that j takes
lji = k₋ji - ki from it. With n concepts in a group, one of n equals takes about k₋ji/n. There are
two rules, one for whoever takes from everybody and one for whoever takes from somebody.

**The toll** of concept j is what it takes from a typical other, in units of this fair part:

    τj = n · median_i lji / max(K, SMALL)        over the concepts i ≠ j that are not faint

where K is what a typical one keeps without a typical other, the median of median_i k₋ji over j.

j is left out if its toll is above `FAIR` and above `COSTLY` times the median of the others' tolls;
half of both is enough if it changes the group's weights more than `LOUD` times as much as the
others do. 1/n is no measure where many concepts are alike, since they lose more to each other; the
tolls of one round lie close together all the same, whatever n and rank are. Nobody alone can raise
another's toll: half of all must lose.

**The share** of its fair part that j leaves i is

    rji = (1 - lji / max(k₋ji, SMALL)) · n/(n - 1)

1 is what one of n equals leaves. j *ruins* i where rji is below `least_share`, a setting, and lji
above `PECULIAR` times what i loses to a typical other: a concept that everybody wears down is not
ruined by the last of them. i *wears down* j where rij is below `WORN`. j is left out if it ruins a
concept that does not wear it down, or more than half of all others. So a loud concept goes and the
quiet ones stay. Where concepts only ruin each other, numbers cannot say who is right, and the
operator is asked: otherwise anybody who contradicts a concept could have it removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mos_common.layers import Group
from mos_server.errors import UndecidedError
from mos_server.fusion.statistics import UnusableConceptError

# A concept that keeps less than this without j has little to lose: a loss counts against this.
SMALL = 0.1
# A victim that leaves this share of the fair part, or more, is a bystander.
WORN = 0.9
# A concept with less energy than this share of the median is drowned by any ordinary one. It cannot
# have others left out.
QUIET = 0.25
# Chosen on the identity bench (docs/security.md, "Figures: poison"), where no concept comes near.
FAIR = 1.0
COSTLY = 3.0
LOUD = 2.2
PECULIAR = 3.0
FEWEST_OTHERS = 2  # whose median says something
MOST_NAMED = 3  # pairs that a question names


class RuinousConceptError(UnusableConceptError):
    """A concept that takes too much from others: it is left out, the others can be fused."""


@dataclass(frozen=True)
class Influence:
    """What each concept of a fusion keeps in one group of layers, with all and without each other.

    kept: ki. without: k₋ji, j by rows. energy: Σ ‖Xi ΔWiᵀ‖²/mi over the group, 0 where a concept
    changes none of its layers. loudness: ‖ΔWi‖/‖W‖, the root of the mean square over the layers it
    changes.
    """

    group: Group
    tokens: Sequence[str]
    kept: Float[Tensor, " concepts"]
    without: Float[Tensor, "concepts concepts"]
    energy: Float[Tensor, " concepts"]
    loudness: Float[Tensor, " concepts"]

    @property
    def fair(self) -> float:
        """The part that one of n equals leaves, (n - 1)/n, of the n that change this group."""
        n = int((self.energy > 0).sum())
        return (n - 1) / n if n > 1 else 1.0

    @property
    def shares(self) -> Float[Tensor, "concepts concepts"]:
        """The shares rji, j by rows; 1 where j or i changes nothing here."""
        changed = self.energy > 0
        shares = (1 - (self.without - self.kept) / self.without.clamp(min=SMALL)) / self.fair
        return torch.where(changed & changed[:, None], shares, 1.0).fill_diagonal_(1.0)

    @property
    def tolls(self) -> Float[Tensor, " concepts"]:
        """The tolls τj; 0 where j changes nothing here or there are too few others."""
        counted, n = _protected(self.energy), int((self.energy > 0).sum())
        tolls, keeps = torch.zeros_like(self.energy), [torch.zeros((), dtype=torch.float64)]
        for j, others in self._others(counted):
            tolls[j] = n * (self.without[j] - self.kept)[others].quantile(0.5)
            keeps.append(self.without[j][others].quantile(0.5))
        return tolls / torch.stack(keeps[1:] or keeps).quantile(0.5).clamp(min=SMALL)

    @property
    def most(self) -> Float[Tensor, " concepts"]:
        """The toll up to which each is fused, from the tolls and the loudness of the others."""
        tolls, most = self.tolls, torch.full_like(self.energy, torch.inf)
        for j, others in self._others(self.energy > 0):
            loud = self.loudness[j] > LOUD * self.loudness[others].quantile(0.5)
            most[j] = max(FAIR, COSTLY * float(tolls[others].quantile(0.5))) / (2 if loud else 1)
        return most

    def ruins(self, least_share: float) -> Bool[Tensor, "concepts concepts"]:
        """Return which concept (row) ruins which (column)."""
        counted = _protected(self.energy)
        ruins = (self.shares < least_share) & counted
        for j, i in ruins.nonzero().tolist():
            others = counted.clone()
            others[[i, j]] = False
            lost = self.without[:, i] - self.kept[i]
            if others.any():
                ruins[j, i] = lost[j] > PECULIAR * lost[others].quantile(0.5)
        return ruins

    def _others(self, counted: Bool[Tensor, " concepts"]) -> Iterator[tuple[int, Bool[Tensor, " concepts"]]]:
        """Yield each concept that changes the group, with those of `counted` beside it."""
        for j in (self.energy > 0).nonzero().flatten().tolist():
            others = counted.clone()
            others[j] = False
            if int(others.sum()) >= FEWEST_OTHERS:
                yield j, others

    def least(self, j: int, i: int, least_share: float) -> float:
        """Return what concept i keeps with j where j just leaves it the least share."""
        alone = float(self.without[j, i])
        return alone - max(alone, SMALL) * (1 - least_share * self.fair)

    def table(self) -> list[list[float]]:
        """Return what each keeps (column) without another (row); on the diagonal, with all."""
        whole = self.without.clone()
        whole.diagonal().copy_(self.kept)
        return [[round(value, 3) for value in row] for row in whole.tolist()]

    def described(self, j: int, i: int) -> str:
        """Describe what j does to i, with the numbers."""
        return (
            f"{self.tokens[i]} keeps {self.kept[i]:.2f} of its effect on the {self.group} with {self.tokens[j]} "
            f"and {self.without[j, i]:.2f} without"
        )


def check_influence(influence: Influence, least_share: float) -> None:
    """Check that no concept ruins another, or takes far more from all than the others do.

    Raises:
        RuinousConceptError: one does; of several, that which does the most harm. Left out one by
            one, with what the rest keep computed anew, those that are mild alone and ruinous
            together are found too.
        UndecidedError: concepts only ruin each other.

    """
    shares, protected = influence.shares, _protected(influence.energy)
    tolls, most = influence.tolls, influence.most
    ruins = influence.ruins(least_share)
    one_sided = ruins & (shares.T >= WORN)
    many = ruins.sum(dim=1) * 2 > max(len(shares) - 1, 2)
    guilty = one_sided.any(dim=1) | many | (tolls > most)
    if not guilty.any():
        if ruins.any():
            raise _question(influence, shares, ruins)
        return
    harm = torch.where(protected, influence.without - influence.kept, 0.0).fill_diagonal_(0).sum(dim=1)
    j = int(torch.where(guilty, harm, -torch.inf).argmax())
    if ruins[j].any():
        victims = torch.where(ruins[j], shares[j], torch.inf)
        i, count = int(victims.argmin()), int(ruins[j].sum())
        others = f", and {count - 1} more" if count > 1 else ""
        why = (
            f"it ruins other concepts: {influence.described(j, i)}, where at least "
            f"{influence.least(j, i, least_share):.2f} is expected{others}"
        )
    else:
        lost = torch.where(protected, influence.without[j] - influence.kept, -torch.inf)
        lost[j] = -torch.inf
        i = int(lost.argmax())
        why = (
            f"it takes {tolls[j]:.2f} times what one of {len(shares)} equals takes from a typical concept, where at most "
            f"{most[j]:.2f} is expected: {influence.described(j, i)}"
        )
    raise RuinousConceptError(influence.tokens[j], why)


def _protected(energy: Float[Tensor, " concepts"]) -> Bool[Tensor, " concepts"]:
    """Return whose loss counts: the concepts that are not much quieter than the others."""
    changed = energy[energy > 0]
    return energy >= QUIET * changed.median() if len(changed) else energy > 0


def _question(
    influence: Influence, shares: Float[Tensor, "concepts concepts"], ruins: Bool[Tensor, "concepts concepts"]
) -> UndecidedError:
    pairs = {tuple(sorted(pair)) for pair in ruins.nonzero().tolist()}
    worst = sorted(pairs, key=lambda pair: float(min(shares[pair], shares[pair[::-1]])))
    told = [f"{influence.described(j, i)}; {influence.described(i, j)}" for i, j in worst[:MOST_NAMED]]
    tokens = list(dict.fromkeys(influence.tokens[number] for pair in worst for number in pair))
    return UndecidedError(
        tokens, f"{' and '.join(tokens)} ruin each other, and numbers do not say which is right: {'; '.join(told)}"
    )
