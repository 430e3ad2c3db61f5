"""Concepts, prompts, and intervals and tests against closed forms."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest

from mos_bench.identity.concepts.bench_concepts import in_fusion_order, spare_icons, spare_people, split, tiny_concepts
from mos_bench.identity.concepts.prompts import KINDS, prompts_for
from mos_bench.identity.concepts.tuning import ED_LORA, SHIPPED, TunedConcepts
from mos_bench.identity.measuring.statistics import interval, paired, share, sign_flip, widened_tail
from mos_bench.identity.options import QUICK
from mos_common.concept import check_fits
from mos_common.errors import RequestError
from mos_common.names import CONCEPT_NAME
from mos_common.prompts import RECORDED, WATCHED, about
from mos_common.words import tokenise
from mos_tiny.recipe.world import PALETTE, SCENES

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def concepts():
    return tiny_concepts()


def test_there_are_64_concepts_whose_names_are_tokens(concepts):
    assert len({concept.name for concept in concepts}) == 64
    assert all(CONCEPT_NAME.fullmatch(concept.name) for concept in concepts)
    assert Counter(concept.category for concept in concepts)["objects"] >= 5


def test_the_split_halves_every_style(concepts):
    halves = split(concepts)
    dev, test = ({concept.name for concept in halves[half]} for half in ("dev", "test"))
    assert (len(dev), len(test), dev & test) == (32, 32, set())
    counts = [Counter(concept.style for concept in half) for half in halves.values()]
    assert all(abs(counts[0][style] - counts[1][style]) <= 1 for style in {c.style for c in concepts})


def test_the_split_does_not_depend_on_the_order_within_a_style(concepts):
    reversed_within = sorted(concepts, key=lambda c: ([x.style for x in concepts].index(c.style), c.name[::-1]))
    assert [c.name for c in split(reversed_within)["dev"]] == [c.name for c in split(concepts)["dev"]]


@pytest.mark.parametrize("n", [5, 8, 14, 20, 32])
def test_whoever_is_fused_at_n_has_every_category_in_its_share(concepts, n):
    for half in split(concepts).values():
        whole, part = (Counter(c.category for c in some) for some in (half, in_fusion_order(half)[:n]))
        assert all(abs(part[category] - n * whole[category] / 32) <= 1 for category in whole)


def test_no_concept_is_among_what_the_witnesses_learn_from(concepts):
    shown = {view.sprite.tobytes() for concept in concepts for view in concept.views}
    spare = [view for views in spare_people() for view in views] + spare_icons()
    assert spare
    assert not shown & {view.sprite.tobytes() for view in spare}


def test_what_quick_needs_comes_with_the_package_as_it_would_be_tuned(tiny, concepts, tmp_path):
    """Otherwise the command would silently tune sixteen concepts again."""
    tuned = TunedConcepts(tiny, tmp_path, tuned=tmp_path / "tuned")
    for half in ("dev", "test"):
        for concept in in_fusion_order(split(concepts)[half])[: max(QUICK.counts)]:
            path = tuned.path(concept, ED_LORA)
            assert path.parent == SHIPPED, concept.name
            check_fits(tuned.concept(concept, ED_LORA), tiny)
    assert {path.suffix for path in SHIPPED.iterdir()} == {".safetensors"}
    assert len(list(SHIPPED.iterdir())) == 2 * max(QUICK.counts)


@pytest.mark.parametrize("kind", [0, -1])
def test_prompts_have_backgrounds_that_fusion_does_not_record(concepts, kind):
    places = [*SCENES.values(), *(f"on a {colour} background" for colour in PALETTE)]
    recorded = {place for place, context in product(places, RECORDED) if place in context}
    concept = concepts[kind]
    for prompt in prompts_for(concept, each=5, tiny=True):
        assert prompt.text.endswith(prompt.background) and prompt.background
        assert prompt.background not in recorded
        assert prompt.text not in (*RECORDED, *WATCHED)


@pytest.mark.parametrize("kind", [0, -1])
def test_there_are_five_prompts_of_each_kind_and_all_their_words_are_the_bases_own(tiny, concepts, kind):
    """Every word is one token but for the concept's own two, so nothing is cut."""
    concept = concepts[kind]
    prompts = prompts_for(concept, each=5, tiny=True)
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(KINDS, 5)
    for prompt in prompts:
        text = prompt.about_class(concept.class_word)
        ids = tokenise(tiny, text, {})
        words = text.replace(",", " , ").split()
        assert ids.end - 1 == len(words), text
        assert ids.end < tiny.text_length - 1
    with pytest.raises(RequestError, match="--prompts 6"):
        prompts_for(concept, each=6, tiny=True)


def test_a_prompt_is_about_the_concept_or_about_its_class(concepts):
    apple = next(c for c in concepts if c.class_word == "apple")
    person = next(c for c in concepts if c.class_word == "person")
    red = next(p for p in prompts_for(apple, each=1, tiny=True) if p.kind == "attribute")
    assert red.about(apple.name, class_word="apple") == f"a red {apple.name} on a purple background"
    assert red.about_class("apple") == "a red apple on a purple background"
    plain = prompts_for(person, each=1, tiny=True)[0]
    assert plain.about_class("person") == about("V in the city", "a person")


def test_nobody_stands_beside_their_own_class(concepts):
    for concept in concepts:
        for prompt in prompts_for(concept, each=5, tiny=True):
            assert prompt.partner(concept.class_word) != concept.class_word
            assert bool(prompt.partner(concept.class_word)) == (prompt.kind == "interaction")


def test_an_interval_of_normal_data_is_students():
    x = RNG.normal(0.5, 0.1, size=(400, 1))
    found = interval(x)
    half = 1.966 * x.std(ddof=1) / sqrt(400)
    assert found.mean == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_intervals_of_eight_concepts_hold_what_they_promise():
    """About 95 % of 200 intervals hold the true mean; plain percentiles would hold 88 %."""
    held = [(i := interval(RNG.normal(size=(8, 1)))).low <= 0 <= i.high for _ in range(200)]
    assert 0.91 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_of_few_concepts_hold_what_they_promise_too(n):
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
def test_a_share_has_wilsons_interval(hits, of, low, high):
    """By statsmodels' proportion_confint(hits, of, method="wilson")."""
    found = share(np.array([[1.0]] * hits + [[0.0]] * (of - hits)))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_seeds_that_agree_add_nothing_and_seeds_that_differ_widen_the_interval():
    x = RNG.normal(size=(20, 1))
    same, apart = interval(np.repeat(x, 4, axis=1)), interval(x + np.array([[-1.0, -0.5, 0.5, 1.0]]))
    alone = interval(x)
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert apart.high - apart.low > 1.2 * (same.high - same.low)


@pytest.mark.parametrize(("concepts", "quantile"), [(2, 12.7062), (3, 4.3027), (7, 2.4469)])
def test_intervals_of_few_concepts_reach_as_far_as_students_table_says(concepts, quantile):
    x = RNG.normal(size=(concepts, 1))
    found = interval(x)
    assert found.high - found.mean == pytest.approx(quantile * x.std(ddof=1) / sqrt(concepts), rel=1e-4)


def test_the_tail_becomes_the_normal_one_with_many_concepts():
    assert widened_tail(100_000) == pytest.approx(0.025, abs=1e-4)
    assert widened_tail(8) == pytest.approx(NormalDist().cdf(-sqrt(8 / 7) * 2.3646), abs=1e-5)


def test_pairing_takes_out_what_two_methods_share():
    level = RNG.normal(size=(30, 2))
    better = level + 0.1 + RNG.normal(scale=0.02, size=level.shape)
    found = paired(better, level)
    assert found.difference.low > 0.08 and found.difference.high < 0.12
    assert found.p < 0.001
    assert paired(level, level).p == 1


def test_flips_of_signs_are_counted_exactly_for_few_concepts():
    """Of the 2⁵ patterns of 1, 2, 3, 4, 5 only two are as far from 0 as all of one sign."""
    assert sign_flip(np.arange(1.0, 6.0)) == pytest.approx(2 / 32)
    assert sign_flip(np.array([1.0, -1.0])) == 1


def test_with_many_concepts_flips_agree_with_the_normal_approximation():
    differences = RNG.normal(0.2, 1, size=80)
    z = differences.mean() / sqrt((differences**2).mean() / 80)
    expected = 2 * NormalDist().cdf(-abs(z))
    assert sign_flip(differences) == pytest.approx(expected, abs=0.02)


def test_what_was_not_measured_has_no_interval():
    found = interval(np.full((3, 2), np.nan))
    assert found.concepts == 0 and np.isnan(found.mean)
