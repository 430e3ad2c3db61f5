"""The prompts of trials, their floor and their truth."""

from __future__ import annotations

from random import Random

from mos_tiny.recipe.trials import COLOURS, noun_trials, pair_trials, person_trials
from mos_tiny.recipe.world import SCENES


def test_floor_prompts_omit_the_attributes_that_prompts_name(world):
    random = Random(0)
    nouns, people, pairs = (
        noun_trials(COLOURS, 1, world, random),
        person_trials(12, world, random),
        pair_trials(6, world, random),
    )
    assert [trial.truth["noun"] for trial in nouns] == list(world.by_noun)
    for trial in nouns:
        assert trial.truth["noun"] in trial.prompt and trial.truth["noun"] not in trial.untrained.partition(" on ")[0]
        assert trial.truth["background"] in trial.prompt
    for trial in people:
        assert trial.truth["style"] in trial.prompt and trial.truth["hair colour"] in trial.prompt
        assert "style" not in trial.untrained and "hair" not in trial.untrained
    for trial in pairs:
        left, right = next(iter(trial.truth.values())).split(" | ")
        assert trial.real.shape == (64, 128, 3)
        said_left, said_right = trial.prompt.split(" on the left and ")
        assert left.split(", ")[-1].split()[-1] in said_left and right.split(", ")[-1].split()[-1] in said_right
    assert {place.words for place in COLOURS}.isdisjoint(SCENES.values())
