"""Intervals and tests against closed forms."""

from __future__ import annotations

import re
from math import sqrt
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from mos_bench.identity.concepts.prompts import KINDS
from mos_bench.identity.measuring.statistics import interval, paired, share, sign_flip, widened_tail, widest_half

RNG = np.random.default_rng(0)


def test_the_interval_of_normal_data_is_students_interval():
    x = RNG.normal(0.5, 0.1, size=(400, 1))
    found = interval(x)
    half = 1.966 * x.std(ddof=1) / sqrt(400)
    assert found.mean == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_intervals_of_eight_concepts_have_their_stated_coverage():
    """About 95 % of 200 intervals hold the true mean; plain percentiles would hold 88 %."""
    held = [(i := interval(RNG.normal(size=(8, 1)))).low <= 0 <= i.high for _ in range(200)]
    assert 0.91 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_of_few_concepts_have_their_stated_coverage_too(n):
    """The observed range would hold the mean of two in half of all samples only."""
    held = [(i := interval(RNG.normal(size=(n, 1)))).low <= 0 <= i.high for _ in range(4000)]
    assert 0.935 <= np.mean(held) <= 0.965


def test_a_single_concept_has_no_interval():
    found = interval(np.array([[0.5]]))
    assert str(found) == "0.500" and found.signed == "+0.500" and np.isnan(found.high)


def test_an_interval_within_bounds_keeps_its_mean():
    found = interval(np.array([[1.0], [0.9], [0.5]])).within(0, 1)
    assert found.mean == pytest.approx(0.8) and found.high == 1 and 0 < found.low < 0.5
    assert np.isnan(interval(np.array([[1.0]])).within(0, 1).low)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(0, 14, 0.0, 0.2153), (3, 14, 0.0757, 0.4759), (14, 14, 0.7847, 1.0)]
)
def test_a_proportion_has_wilsons_interval(hits, of, low, high):
    """By statsmodels' proportion_confint(hits, of, method="wilson")."""
    found = share(np.array([[1.0]] * hits + [[0.0]] * (of - hits)))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_no_share_of_drawings_has_a_wider_interval_than_one_half():
    """Over every number of hits of 100, the widest interval is that of 50."""
    halves = [(found.high - found.low) / 2 for hits in range(101) for found in [share(np.arange(100)[:, None] < hits)]]
    assert max(halves) == pytest.approx(halves[50]) == pytest.approx(widest_half(100))


def test_an_interval_over_drawings_holds_the_accuracy_of_concepts_that_differ():
    """Half of the concepts are always right, the others in 40 %: at least 95 % hold .7."""
    chances = np.repeat([[1.0], [0.4]], 7, axis=0)
    held = [(i := share(RNG.random((14, 24)) < chances)).low <= 0.7 <= i.high for _ in range(400)]
    assert np.mean(held) >= 0.95


def test_the_documented_commands_reach_a_half_width_of_two_hundredths():
    """Every command of the page that names --n, --prompts and --seeds scores all that are fused."""
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    asked = re.findall(r"mos-bench identity .*--n (14|32) --prompts (\d+) --seeds (\d+) --probed 0", page)
    assert {int(n) for n, _, _ in asked} == {14, 32}
    assert all(widest_half(int(n) * len(KINDS) * int(each) * int(seeds)) <= 0.02 for n, each, seeds in asked)


def test_equal_seeds_leave_the_interval_as_it_is_and_different_seeds_widen_it():
    x = RNG.normal(size=(20, 1))
    same, apart = interval(np.repeat(x, 4, axis=1)), interval(x + np.array([[-1.0, -0.5, 0.5, 1.0]]))
    alone = interval(x)
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert apart.high - apart.low > 1.2 * (same.high - same.low)


@pytest.mark.parametrize(("concepts", "quantile"), [(2, 12.7062), (3, 4.3027), (7, 2.4469)])
def test_intervals_of_few_concepts_have_the_width_of_students_table(concepts, quantile):
    x = RNG.normal(size=(concepts, 1))
    found = interval(x)
    assert found.high - found.mean == pytest.approx(quantile * x.std(ddof=1) / sqrt(concepts), rel=1e-4)


def test_the_tail_converges_to_the_normal_one_with_many_concepts():
    assert widened_tail(100_000) == pytest.approx(0.025, abs=1e-4)
    assert widened_tail(8) == pytest.approx(NormalDist().cdf(-sqrt(8 / 7) * 2.3646), abs=1e-5)


def test_pairing_removes_the_variation_that_two_methods_share():
    level = RNG.normal(size=(30, 2))
    better = level + 0.1 + RNG.normal(scale=0.02, size=level.shape)
    found = paired(better, level)
    assert found.difference.low > 0.08 and found.difference.high < 0.12
    assert found.p < 0.001
    assert paired(level, level).p == 1


def test_sign_flips_are_counted_exactly_for_few_concepts():
    """Of the 2⁵ patterns of 1, 2, 3, 4, 5 only two are as far from 0 as all of one sign."""
    assert sign_flip(np.arange(1.0, 6.0)) == pytest.approx(2 / 32)
    assert sign_flip(np.array([1.0, -1.0])) == 1


def test_sign_flips_of_many_concepts_agree_with_the_normal_approximation():
    differences = RNG.normal(0.2, 1, size=80)
    z = differences.mean() / sqrt((differences**2).mean() / 80)
    expected = 2 * NormalDist().cdf(-abs(z))
    assert sign_flip(differences) == pytest.approx(expected, abs=0.02)


def test_unmeasured_concepts_have_no_interval():
    found = interval(np.full((3, 2), np.nan))
    assert found.concepts == 0 and np.isnan(found.mean)
