"""The membership attack: its statistic, a case with a known answer, and the report."""

from __future__ import annotations

import logging
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mos_client.inspection.leakage import Leakage, auc, measure_leakage, p_value
from mos_client.pictures.examples import load_examples
from mos_client.pictures.folder import split_pictures
from mos_client.tuning.loop import Tuning
from mos_client.tuning.settings import TuningSettings
from mos_client.tuning.tune_folder import tuned_concept
from mos_common.concept import Concept
from mos_common.errors import ConceptError

GAINS = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=4)


@given(GAINS, GAINS)
def test_the_score_is_the_rank_sum_of_mann_and_whitney(members, others):
    """U/(nm) with U = R - n(n+1)/2 from the members' ranks; ties share the mean rank."""
    everything = sorted([*members, *others])
    rank = {x: np.mean([i + 1 for i, y in enumerate(everything) if y == x]) for x in everything}
    n = len(members)
    U = sum(rank[x] for x in members) - n * (n + 1) / 2
    assert auc(members, others) == pytest.approx(U / (n * len(others)))


@given(st.lists(st.integers(0, 2).map(float), min_size=1, max_size=3), GAINS.filter(lambda x: len(x) < 4))
def test_p_is_the_share_of_all_orders_that_score_as_high(members, others):
    everything, n = [*members, *others], len(members)
    scores = [auc(order[:n], order[n:]) for order in permutations(everything)]
    expected = np.mean([score >= auc(members, others) - 1e-12 for score in scores])
    assert p_value(members, others) == pytest.approx(expected)


def test_of_very_many_orders_a_sample_that_is_always_the_same_is_enough():
    g = torch.Generator().manual_seed(0)
    alike = [torch.rand(n, generator=g).tolist() for n in (15, 15)]
    assert p_value(*alike) == p_value(*alike)
    assert 0.05 < p_value(*alike) <= 1
    assert p_value([x + 1 for x in alike[0]], alike[1]) < 0.001


def write_pictures(folder: Path, count: int, seed: int) -> Path:
    """Write soft coloured patterns that have nothing in common."""
    folder.mkdir()
    g = np.random.default_rng(seed)
    for i in range(count):
        cells = Image.fromarray(g.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        cells.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def case(tiny, tmp_path_factory) -> tuple[Path, Path, Concept, Concept]:
    """Pictures tuned on, held back and others; an untuned and an overfitted concept."""
    root = tmp_path_factory.mktemp("leakage")
    images, others = write_pictures(root / "images", 6, 1), write_pictures(root / "others", 4, 2)
    config = TuningSettings(
        steps=100,
        batch=2,
        learning_rate_words=1e-2,
        learning_rate_text=0.0,
        learning_rate_unet=8e-3,
        noise_offset=0.0,
        rank=16,
        averaging=0.0,
    )
    tuning = Tuning(tiny, "cat", load_examples(tiny, split_pictures(images)[0]), config)
    untouched = tuned_concept(tuning, "<cat>")
    list(tuning.steps())
    return images, others, untouched, tuned_concept(tuning, "<cat>")


def test_a_concept_that_has_learnt_its_pictures_by_heart_is_told_on(tiny, case):
    images, others, _, over_fitted = case
    result = measure_leakage(tiny, over_fitted, images, others)
    assert list(result.tuned_on) == ["00.png", "01.png", "02.png", "03.png"]
    assert list(result.never_seen) == ["04.png", "05.png", *(f"others/0{i}.png" for i in range(4))]
    assert result.auc >= 0.9
    assert result.p_value < 0.05
    assert "can tell that it was tuned on" in "\n".join(result.lines())


def test_a_concept_that_was_never_tuned_is_at_chance(tiny, case):
    """Its pairs are zero; a new word that means something else gives members no advantage."""
    images, others, untouched, _ = case
    result = measure_leakage(tiny, untouched, images, others)
    assert 0.2 <= result.auc <= 0.8
    assert result.p_value > 0.05
    assert "could be chance: it shows neither" in "\n".join(result.lines())


def test_a_concept_that_changes_nothing_gains_nothing(tiny, case):
    """With its class word and no changes it is the base: every gain is zero, and ties score 0.5."""
    images, *_ = case
    same = Concept("<cat>", "cat", tiny.fingerprint, {})
    result = measure_leakage(tiny, same, images)
    assert set(result.tuned_on.values()) | set(result.never_seen.values()) == {0.0}
    assert (result.auc, result.p_value) == (0.5, 1.0)


def test_others_that_were_tuned_on_are_no_others(tiny, case, caplog, tmp_path):
    images, *_ = case
    for name in ("00.png", "04.png"):
        (tmp_path / name).write_bytes((images / name).read_bytes())
    write_pictures(tmp_path / "new", 1, 9)
    (tmp_path / "new" / "00.png").rename(tmp_path / "9.png")
    with caplog.at_level(logging.WARNING):
        result = measure_leakage(tiny, Concept("<cat>", "cat", tiny.fingerprint, {}), images, tmp_path)
    assert list(result.never_seen) == ["04.png", "05.png", f"{tmp_path.name}/9.png"]
    assert "2 pictures of" in caplog.text


def test_a_concept_of_another_base_is_refused(tiny, sixteen, make_concept, case):
    with pytest.raises(ConceptError, match="use the base it was tuned on"):
        measure_leakage(tiny, make_concept(sixteen), case[0])


def report_of(members: list[float], others: list[float]) -> str:
    names = [{f"{kind}{i}.png": x for i, x in enumerate(xs)} for kind, xs in (("m", members), ("o", others))]
    return "\n".join(Leakage(*names).lines())


@pytest.mark.parametrize(
    ("members", "others", "words"),
    [
        ([5, 6, 7, 8, 9], [0, 1, 2, 3, 4], "can tell that it was tuned on"),
        ([*range(10, 40)], [*range(30)], "can often tell"),
        ([*range(25, 225)], [*range(200)], "hardly better than guessing"),
        ([0, 2, 4, 6, 8], [1, 3, 5, 7, 9], "With 5 and 5 pictures this could be chance: it shows neither"),
        ([5, 6, 7, 8], [1, 2], "4 and 2 pictures are too few to show anything, whatever the score.*--others"),
    ],
)
def test_what_a_score_means_is_said_in_plain_words(members, others, words):
    lines = report_of([*map(float, members)], [*map(float, others)])
    assert re.search(words, lines), lines


def test_what_it_does_not_prove_is_always_said():
    lines = report_of([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.7, 0.8])
    for text in (
        "how much better the concept predicts",
        "tuned on  m0.png  +1.0000",
        "never seen  o3.png  +0.8000",
        "membership score 1.00 (0.5 is guessing, 1 is certainty), p = 0.014",
        "proves nothing about other attacks",
        "it is not about likeness",
        "Share it only with people who may draw it",
    ):
        assert text in lines
