"""How witnesses learn, answer and are kept."""

from __future__ import annotations

from random import Random

import torch

from mos_tiny.recipe.compose import World
from mos_tiny.recipe.witnesses.classifier import nearest_whitened_mean
from mos_tiny.recipe.witnesses.lessons import backgrounds, people
from mos_tiny.recipe.witnesses.witness import Lesson, Witness, keep_witnesses, kept_witnesses


def test_a_witness_names_the_places_that_it_learnt(world: World):
    lesson = backgrounds(world, Random(0), 64, 120)
    witness = Witness.learn(lesson, "background", "thumbnail", nearest_whitened_mean)
    other = backgrounds(world, Random(1), 64, 60)
    right = [answer == truth["background"] for answer, truth in zip(witness(other.pictures), other.truths, strict=True)]
    assert sum(right) >= 0.9 * len(right)


def test_pictures_in_which_an_attribute_is_not_seen_teach_nothing_of_it(world: World):
    """Adding noise that is labelled as bald leaves the witness of hair as it was."""
    lesson = people(world, Random(0), 30)
    noise = torch.rand(10, 3, 64, 64) * 2 - 1
    bald = Lesson(torch.cat([lesson.pictures, noise]), [*lesson.truths, *({"hair": ""} for _ in noise)])
    first, second = (Witness.learn(each, "hair", "colours", nearest_whitened_mean) for each in (lesson, bald))
    assert first.classifier.names == second.classifier.names
    assert torch.equal(first.classifier.weights, second.classifier.weights)


def test_kept_witnesses_answer_as_before(world: World, tmp_path):
    lesson = people(world, Random(0), 30)
    learnt = {name: Witness.learn(lesson, name, "colours", nearest_whitened_mean) for name in ("hair", "shirt")}
    keep_witnesses(learnt, tmp_path / "witnesses.safetensors")
    kept = kept_witnesses(tmp_path / "witnesses.safetensors")
    assert kept.keys() == learnt.keys()
    for name, witness in kept.items():
        assert witness.reader == "colours"
        assert witness(lesson.pictures) == learnt[name](lesson.pictures)
