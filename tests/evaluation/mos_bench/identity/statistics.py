"""Means with intervals over concepts and seeds, and paired comparisons of two methods. Everything here is a pure function.

A score is a matrix, one row a concept, one column a seed (means over prompts). Both are samples of what could have been measured,
and a seed is the same noise for every concept; so a bootstrap draws rows and columns, each with replacement:

    m* = r*ᵀ x c*,  r* and c* how often each row and column was drawn, as shares       interval: the quantiles α' and 1 - α' of m*

The plain percentile interval is too narrow for few concepts. It is widened as Hesterberg (The American Statistician 2015, section
4.1.2) proposes, to α' = Φ(-√(n/(n-1)) t(1-α/2, n-1)): for normal data that is Student's interval. Of fewer than eight concepts no resampling
reaches far enough, since it never leaves what was seen: there it is Student's own, over the concepts' means. A share of pictures has Wilson's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import exp, isnan, lgamma, log, pi, sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
DRAWS = 4000
FEW = 8  # concepts from which a bootstrap can hold what it promises
EXACT = 12  # up to so many concepts every flip of signs is tried
Matrix = Float[np.ndarray, "concepts seeds"]


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval, over so many concepts (of a share: pictures)."""

    mean: float
    low: float
    high: float
    concepts: int

    def __str__(self) -> str:
        """`0.812 [0.790, 0.834]`; of a single concept the mean alone."""
        return f"{self.mean:.3f}" + ("" if isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]")

    @property
    def signed(self) -> str:
        """`+0.022 [-0.015, +0.040]`."""
        return f"{self.mean:+.3f}" + ("" if isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]")

    def within(self, least: float, most: float) -> Interval:
        """The same, its ends no further than the score can be: a share is not above 1."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))


@dataclass(frozen=True)
class Paired:
    """The mean difference of two methods on the same concepts and seeds, and the probability of as much by flips of signs alone."""

    difference: Interval
    p: float


def interval(values: Matrix, *, seed: int = 0) -> Interval:
    """The mean of a score over concepts and seeds, with its interval; a single concept has none.

    Concepts that were not measured are rows of NaN, and count nowhere.
    """
    x = np.asarray(values, float)
    x = x[~np.isnan(x).all(axis=1)]
    if not len(x):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    if len(x) < FEW:
        half = student_quantile((1 + LEVEL) / 2, len(x) - 1) * float(x.mean(axis=1).std(ddof=1)) / sqrt(len(x))
        return Interval(mean, mean - half, mean + half, len(x))
    random, (n, seeds) = np.random.default_rng(seed), x.shape
    rows = random.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
    columns = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds
    means = ((rows @ x) * columns).sum(axis=1)
    tail = widened_tail(len(x))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), len(x))


def share(hits: Matrix) -> Interval:
    """The share of pictures in which something is so, with Wilson's interval: of none in fourteen it is not [0, 0].

    (p + z²/2m ± z √(p(1-p)/m + z²/4m²)) / (1 + z²/m) over m pictures.
    """
    m = hits.size
    if not m:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    p, z = float(hits.mean()), NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle, half = p + z**2 / (2 * m), z * sqrt(p * (1 - p) / m + z**2 / (4 * m**2))
    return Interval(p, max(0.0, (middle - half) / (1 + z**2 / m)), min(1.0, (middle + half) / (1 + z**2 / m)), m)


def paired(one: Matrix, other: Matrix, *, seed: int = 0) -> Paired:
    """How much `one` is above `other`, concept for concept and seed for seed."""
    difference = np.asarray(one, float) - np.asarray(other, float)
    of_concepts = difference[~np.isnan(difference).all(axis=1)].mean(axis=1)
    return Paired(interval(difference, seed=seed), sign_flip(of_concepts, seed=seed))


def sign_flip(differences: Float[np.ndarray, " concepts"], *, seed: int = 0) -> float:
    """Two-sided: the share of all sign patterns whose mean is at least as far from 0 as what was seen.

    Exact for up to 12 concepts, else of 10,000 random patterns (with what was seen among them, so never 0).
    """
    seen = abs(differences.mean()) if len(differences) else 0.0
    if len(differences) <= EXACT:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(differences))))
        return float((np.abs(signs @ differences) / max(1, len(differences)) >= seen - 1e-12).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(10_000, len(differences)))
    as_far = (np.abs(signs @ differences) / len(differences) >= seen - 1e-12).sum()
    return float((as_far + 1) / (len(signs) + 1))


def widened_tail(n: int, level: float = LEVEL) -> float:
    """Α' above: where to cut the bootstrap's distribution on each side for n samples."""
    t = student_quantile((1 + level) / 2, n - 1)
    return NormalDist().cdf(-sqrt(n / (n - 1)) * t)


@cache
def student_quantile(p: float, freedom: int) -> float:
    """The quantile of Student's t above ½: bisection on its distribution, which is integrated by Simpson's rule in the angle.

    With t = √ν tan θ the density's integral is that of cos^(ν-1) θ over [0, θ], times Γ((ν+1)/2) / (√π Γ(ν/2)).
    """
    factor = exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2) - 0.5 * log(pi))
    low, high = 0.0, pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        angles = np.linspace(0, middle, 2001)
        weights = np.where(np.arange(2001) % 2 == 1, 4.0, 2.0)
        weights[[0, -1]] = 1
        below = 0.5 + factor * float((np.cos(angles) ** (freedom - 1) * weights).sum()) * middle / 2000 / 3
        low, high = (middle, high) if below < p else (low, middle)
    return sqrt(freedom) * float(np.tan(low))


def stacked(of_concepts: Sequence[Float[np.ndarray, " seeds"]]) -> Matrix:
    """One row a concept."""
    return np.stack(list(of_concepts)) if of_concepts else np.empty((0, 1))
