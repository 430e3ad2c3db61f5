"""Identity: four numbers on one scale, the same drawings on both sides."""

from __future__ import annotations

import pytest
import torch

from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import split_pictures
from mos_common.drawing import Drawing, draw
from mos_common.edlora import LowRank, attached
from mos_common.fused_model import FusedModel
from mos_common.identity import measure_identity, probe_for, score_ceiling, score_class_word, score_in
from mos_common.prompts import SCORED, about
from mos_common.scores import ImageScorer, image_alignment
from mos_tiny import demo_concepts

STEPS = 2  # drawings need not be good: these facts do not depend on it


@pytest.fixture
def concept(tiny, make_concept):
    return make_concept(tiny, "<tom>", seed=3, strength=0.05, class_word="man")


@pytest.fixture(scope="module")
def folder_pictures():
    tuned_on, held_back = split_pictures(demo_concepts() / "tom")
    return load_pictures(tuned_on, 64), load_pictures(held_back, 64)


def as_fused(concept, token: str) -> FusedModel:
    """A fused model that holds one concept unchanged, under another token."""
    return FusedModel(concept.pairs, {token: concept.words[0].float()}, manifest=None)


def test_a_concept_that_fusion_left_alone_scores_as_it_did_alone(tiny, concept, folder_pictures):
    tuned_on, held_back = folder_pictures
    fused = as_fused(concept, "<carol/tom>")
    scores = measure_identity(tiny, concept, tuned_on, held_back, fused=fused, fused_token="<carol/tom>", steps=STEPS)
    assert scores.fused == pytest.approx(scores.single, abs=1e-5)


def test_the_class_word_is_drawn_by_the_untouched_base(tiny, concept, folder_pictures):
    """Another road: the same prompts and seeds drawn without any of the probe's code."""
    _, held_back = folder_pictures
    scorer = ImageScorer()
    probe = probe_for(tiny, concept, held_back, scorer, steps=STEPS)
    drawn = draw(tiny, [about(context, "a man") for context in SCORED], probe.seeds, how=Drawing(steps=STEPS))
    expected = image_alignment(scorer.features(drawn), scorer.features(held_back))
    assert score_class_word(probe, concept) == pytest.approx(expected, abs=1e-5)


def test_the_ceiling_is_what_other_real_pictures_score_through_the_vae(tiny, concept, folder_pictures):
    tuned_on, held_back = folder_pictures
    scorer = ImageScorer()
    rebuilt = tiny.decode_latents(tiny.encode_pictures(tuned_on))
    expected = image_alignment(scorer.features(rebuilt), scorer.features(held_back))
    ceiling = score_ceiling(probe_for(tiny, concept, held_back, scorer), tuned_on)
    assert ceiling == pytest.approx(expected, abs=1e-6)
    assert ceiling > 0.6


def test_every_measurer_draws_with_the_same_seeds_and_another_concept_with_others(tiny, concept, make_concept):
    held_back = torch.zeros(1, 3, 64, 64)
    scorer = ImageScorer()
    seeds = [probe_for(tiny, each, held_back, scorer).seeds for each in (concept, concept, make_concept(tiny, seed=4))]
    assert seeds[0] == seeds[1] != seeds[2]
    assert len(seeds[0]) == len(SCORED)


def test_a_fused_model_is_scored_with_its_own_changes(tiny, concept, folder_pictures):
    _, held_back = folder_pictures
    probe = probe_for(tiny, concept, held_back, ImageScorer(), steps=STEPS)
    stronger = {name: LowRank(pair.A, 8 * pair.B, pair.alpha) for name, pair in concept.pairs.items()}
    fused = FusedModel(stronger, {"<carol/tom>": concept.words[0].float()}, manifest=None)
    with attached(tiny, stronger):
        prompts = [about(context, "<carol/tom>") for context in SCORED]
        drawn = draw(tiny, prompts, probe.seeds, vocabulary=fused.vocabulary, how=Drawing(steps=STEPS))
    expected = image_alignment(probe.scorer.features(drawn), probe.references)
    assert score_in(probe, fused, "<tom>") == pytest.approx(expected, abs=1e-5)
