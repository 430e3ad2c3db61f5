"""How often one method's picture was preferred to another's, with 95 % intervals.

An answer counts 1 for the first method, 0 for the second, and ½ for neither. The share p is the
mean over all answers. Two intervals stand beside it:

    Wilson     n pairs of pictures, each counted once by its raters' mean, z = 1.96:
               (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n)
    bootstrap  raters and concepts drawn again, each with replacement and independently, since one
               person's answers are alike, and so are those about one concept

Wilson's (JASA 1927) is for pairs that are independent, whatever was asked of whom; with answers of
½ it is wider than it need be. The bootstrap says how far the share would move with other raters and
other concepts. It needs two of either; with fewer than eight concepts and raters it is too narrow.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from math import nan, sqrt

import numpy as np
from jaxtyping import Float
from scipy import stats

from mos_bench.identity.measuring.statistics import LEVEL, RESAMPLES, Interval
from mos_bench.study.answers import NEITHER, Rater
from mos_bench.study.trials import QUESTIONS, Key, Trial

Scores = Float[np.ndarray, "raters trials"]


@dataclass(frozen=True)
class Comparison:
    """How often `first` was preferred to `second` in answer to one question."""

    question: str
    first: str
    second: str
    wins: int
    ties: int
    losses: int
    pairs: int
    raters: int
    share: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float


def tally(key: Key, raters: Sequence[Rater]) -> list[Comparison]:
    """Return every pair of methods under both questions."""
    return list(_compared(key, raters)) if raters else []


def _compared(key: Key, raters: Sequence[Rater]) -> Iterator[Comparison]:
    for question in QUESTIONS:
        for first, second in combinations(key.methods, 2):
            trials = [trial for trial in key.trials if set(trial.pictures.values()) == {first, second}]
            if not trials:
                continue
            scores = scores_of(raters, trials, question, first)
            share, ends = float(scores.mean()), resampled(scores, [trial.concept for trial in trials])
            by_pairs = wilson(share, len(trials))
            wins, ties, losses = (int((scores == score).sum()) for score in (1.0, 0.5, 0.0))
            counts = (wins, ties, losses, len(trials), len(raters))
            yield Comparison(question, first, second, *counts, share, by_pairs.low, by_pairs.high, *ends)


def scores_of(raters: Sequence[Rater], trials: Sequence[Trial], question: str, first: str) -> Scores:
    """Return 1 where the first method was preferred, ½ for neither, 0 for the other."""
    worth = {first: 1.0, NEITHER: 0.5}
    return np.array([[worth.get(rater.chosen[t.trial, question], 0.0) for t in trials] for rater in raters])


def wilson(share: float, n: int) -> Interval:
    """Return Wilson's interval of a share of n; `share`·n need not be whole."""
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    middle, half = share + z**2 / (2 * n), z * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n), n)


def resampled(scores: Scores, concepts: Sequence[str], *, seed: int = 0) -> tuple[float, float]:
    """Return the ends of the bootstrap interval over raters and concepts; NaN for one of each.

    Drawing with replacement is counting how often each was drawn: with counts u of raters and v of
    concepts, the share is uᵀ S v / uᵀ N v, where S sums the scores and N counts the answers.
    """
    names = list(dict.fromkeys(concepts))
    if len(scores) < 2 and len(names) < 2:
        return nan, nan
    member = np.array([[name == concept for name in names] for concept in concepts], float)
    total, count = scores @ member, np.ones_like(scores) @ member
    random = np.random.default_rng(seed)
    u, v = (random.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float) for n in total.shape)
    shares = np.einsum("kr,rc,kc->k", u, total, v) / np.einsum("kr,rc,kc->k", u, count, v)
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def csv_of(comparisons: Sequence[Comparison]) -> bytes:
    """Return one line for every comparison, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Comparison)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(comparison) for comparison in comparisons)
    return text.getvalue().encode()
