"""Claims of prompts, confirmed on real pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mos_bench.identity.scoring.claims as claims
from mos_bench.identity.concepts.prompts import prompts_for
from mos_bench.identity.scoring.claims import Claim, ClaimChecker, claims_of, part_of
from mos_tiny.recipe.witnesses.lessons import in_random_places
from mos_tiny.recipe.witnesses.of_prompts import LessonSizes


@pytest.fixture(scope="module")
def claim_checker(tiny):
    return ClaimChecker(tiny, sizes=LessonSizes(each=4, scenes=300, people=90, colours=90))


def test_pictures_confirm_the_claims_of_their_own_prompt_and_not_of_another(pictures, claim_checker):
    """Real pictures of twelve contexts confirm their own claims, not those of the next context."""
    from mos_tiny.recipe.demonstration import CONTEXTS
    from mos_tiny.recipe.world import SCENES

    places = [SCENES.get(context, f"on a {context} background") for context in CONTEXTS[:10]]
    true, false = [], []
    for concept, (tuned_on, _) in list(pictures.items())[::3]:
        class_claim = claims_of(prompts_for(concept, each=1, tiny=True)[0], concept)[0]
        for i, picture in enumerate(tuned_on):
            true += [(picture, class_claim), (picture, Claim("background", places[i]))]
            false.append((picture, Claim("background", places[(i + 1) % 10])))
    assert np.mean(claim_checker.confirmed(true)) >= 0.9
    assert np.mean(claim_checker.confirmed(false)) <= 0.02


def test_people_are_not_taken_for_things_nor_things_for_people(pictures, claim_checker):
    for concept, (tuned_on, _) in pictures.items():
        other = "car" if concept.person else "person"
        assert np.mean(claim_checker.confirmed([(picture, Claim("class", other)) for picture in tuned_on])) <= 0.1


def test_each_half_of_a_wide_picture_is_checked_alone(world, claim_checker):
    from random import Random

    random = Random(3)
    halves = in_random_places([world.person(random), world.person(random)], random, world)
    wide = torch.cat([halves[0], halves[1]], dim=2)
    assert torch.equal(part_of(wide, "left"), halves[0]) and torch.equal(part_of(wide, "right"), halves[1])
    assert claim_checker.confirmed([(wide, Claim("class", "person", "left"))]) == claim_checker.confirmed(
        [(halves[0], Claim("class", "person"))]
    )


def test_witnesses_that_were_kept_do_not_learn_again(tiny, tmp_path, monkeypatch):
    sizes = LessonSizes(each=1, scenes=40, people=40, colours=40)
    first, second = (ClaimChecker(tiny, tmp_path, sizes) for _ in range(2))
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    answers = first.answer("hair", pictures)
    monkeypatch.setattr(claims, "learn_of_prompts", None)  # learning again would fail
    assert second.answer("hair", pictures) == answers
