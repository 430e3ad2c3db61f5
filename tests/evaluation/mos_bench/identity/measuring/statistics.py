"""Means with intervals over concepts and seeds, and paired comparisons of two methods.

A score is a matrix with one row per concept and one column per seed (a mean over prompts). Both
rows and columns are samples of what could have been measured, and a seed is the same noise for
every concept, so the bootstrap resamples rows and columns independently, each with replacement:

    m* = mean of x[r*, c*]     interval: the quantiles a' and 1 - a' of m*

The plain percentile interval is too narrow for few concepts. Hesterberg (The American Statistician
2015, section 4.1.2) widens it to a' = Phi(-sqrt(n / (n - 1)) t(1 - a/2, n - 1)), which for normal
data is Student's interval. For fewer than eight concepts resampling cannot reach far enough, since
it never leaves the observed range; there the interval is Student's, over the concepts' means.

A share of drawings, the concepts and prompts as they are, has Wilson's interval. If N independent
drawings have the chances p_i, with mean p, then the variance of the share is

    sum of p_i (1 - p_i) / N^2  <=  p (1 - p) / N

so the interval is wide enough however much concepts and prompts differ. What a seed does to many
drawings alike is in the interval over concepts and seeds only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan, sqrt

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

LEVEL = 0.95
RESAMPLES = 4000
FEWEST_FOR_BOOTSTRAP = 8
"""The fewest concepts for which the widened bootstrap interval has the coverage that it states."""
MOST_FOR_EXACT = 12
"""Up to this many concepts every pattern of signs is tried, else `SIGN_PATTERNS` random ones."""
SIGN_PATTERNS = 10_000
ConceptScores = Float[np.ndarray, "concepts seeds"]


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95 % interval over `concepts` concepts (or pictures)."""

    mean: float
    low: float
    high: float
    concepts: int

    def __str__(self) -> str:
        """Return `0.812 [0.790, 0.834]`, or the mean alone for a single concept."""
        return f"{self.mean:.3f}" + ("" if isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]")

    @property
    def signed(self) -> str:
        """Return `+0.022 [-0.015, +0.040]`."""
        return f"{self.mean:+.3f}" + ("" if isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]")

    def within(self, least: float, most: float) -> Interval:
        """Return the interval clipped to the score's range: a proportion never exceeds 1."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))


@dataclass(frozen=True)
class Paired:
    """The mean difference of two methods on the same concepts and seeds.

    `p` is the two-sided p-value of a sign-flip permutation test.
    """

    difference: Interval
    p: float


def interval(values: ConceptScores, *, seed: int = 0) -> Interval:
    """Return the mean over concepts and seeds with its interval; a single concept has none.

    Rows of NaN are concepts that were not measured; they are left out.
    """
    x = np.asarray(values, float)
    x = x[~np.isnan(x).all(axis=1)]
    if not len(x):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    if len(x) < FEWEST_FOR_BOOTSTRAP:
        deviation = float(x.mean(axis=1).std(ddof=1))
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(x) - 1)) * deviation / sqrt(len(x))
        return Interval(mean, mean - half, mean + half, len(x))
    low, high = _bootstrap(x, seed)
    return Interval(mean, low, high, len(x))


def _bootstrap(x: ConceptScores, seed: int) -> tuple[float, float]:
    """Return the widened percentile interval; rows and columns are resampled independently."""

    def mean_of(rows: Int[np.ndarray, "*n rows"], *columns: Int[np.ndarray, "*n columns"], axis: int) -> np.ndarray:
        which = columns[0][..., None, :] if columns else np.zeros((1, 1), int)
        means: np.ndarray = x[rows[..., :, None], which].mean(axis=(-2, -1))
        return means

    n, seeds = x.shape
    resampled = (np.arange(n), np.arange(seeds)) if seeds > 1 else (np.arange(n),)
    result = stats.bootstrap(
        resampled,
        mean_of,
        n_resamples=RESAMPLES,
        vectorized=True,
        batch=max(1, 2_000_000 // x.size),
        axis=-1,
        confidence_level=1 - 2 * widened_tail(n),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    ends = result.confidence_interval
    return float(ends.low), float(ends.high)


def share(hits: ConceptScores) -> Interval:
    """Return the proportion of pictures that are hits (1, else 0) with Wilson's interval.

    It is not [0, 0] for 0 of 14.
    """
    if not hits.size:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    ends = stats.binomtest(round(float(hits.sum())), hits.size).proportion_ci(LEVEL, method="wilson")
    return Interval(float(hits.mean()), float(ends.low), float(ends.high), hits.size)


def widest_half(drawings: int) -> float:
    """Return the largest half-width that `share` of that many drawings can have, for a share of ½.

    Wilson's half-width there is z / (2 √(N + z²)).
    """
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    return z / (2 * sqrt(drawings + z**2))


def paired(first: ConceptScores, second: ConceptScores, *, seed: int = 0) -> Paired:
    """Return `first` − `second`, concept for concept and seed for seed."""
    difference = np.asarray(first, float) - np.asarray(second, float)
    measured = difference[~np.isnan(difference).all(axis=1)]
    return Paired(interval(difference, seed=seed), sign_flip(measured.mean(axis=1), seed=seed))


def sign_flip(differences: Float[np.ndarray, " concepts"], *, seed: int = 0) -> float:
    """Return the two-sided p-value of a sign-flip permutation test of the mean difference.

    It is exact for at most 12 concepts, else it is estimated from 10,000 random patterns of signs
    (and the observed one, so that it is never 0). Fewer than two concepts give 1.
    """
    if len(differences) < 2:
        return 1.0
    result = stats.permutation_test(
        (differences,),
        lambda x, axis: np.abs(x.mean(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if len(differences) <= MOST_FOR_EXACT else SIGN_PATTERNS,
        alternative="greater",
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def widened_tail(n: int, level: float = LEVEL) -> float:
    """Return a' above: the probability to cut off at each end for n samples."""
    t = float(stats.t.ppf((1 + level) / 2, n - 1))
    return float(stats.norm.cdf(-sqrt(n / (n - 1)) * t))


def stacked(rows: Sequence[Float[np.ndarray, " seeds"]]) -> ConceptScores:
    """Return one row per concept; without concepts a matrix of shape (0, 1)."""
    return np.stack(list(rows)) if rows else np.empty((0, 1))
