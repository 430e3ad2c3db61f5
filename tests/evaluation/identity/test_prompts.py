"""Prompts about a concept and about its class."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from mos_bench.identity.concepts.bench_concepts import tiny_concepts
from mos_bench.identity.concepts.prompts import EACH, KINDS, prompts_for
from mos_common.errors import RequestError
from mos_common.prompts import RECORDED, WATCHED, about
from mos_common.words import tokenise
from mos_tiny.recipe.world import PALETTE, SCENES


@pytest.fixture(scope="module")
def concepts():
    return tiny_concepts()


@pytest.mark.parametrize("kind", [0, -1])
def test_prompts_have_backgrounds_that_fusion_does_not_record(concepts, kind):
    places = [*SCENES.values(), *(f"on a {colour} background" for colour in PALETTE)]
    recorded = {place for place, context in product(places, RECORDED) if place in context}
    concept = concepts[kind]
    for prompt in prompts_for(concept, each=EACH, tiny=True):
        assert prompt.text.endswith(prompt.background) and prompt.background
        assert prompt.background not in recorded
        assert prompt.text not in (*RECORDED, *WATCHED)


@pytest.mark.parametrize("kind", [0, -1])
def test_there_are_eight_prompts_of_each_kind_and_every_word_is_one_token_of_the_base(tiny, concepts, kind):
    """Every word is one token but for the concept's own two, so nothing is cut."""
    concept = concepts[kind]
    prompts = prompts_for(concept, each=8, tiny=True)
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(KINDS, 8)
    assert len({prompt.about_class(concept.class_word) for prompt in prompts}) == 4 * 8
    for prompt in prompts:
        text = prompt.about_class(concept.class_word)
        ids = tokenise(tiny, text, {})
        words = text.replace(",", " , ").split()
        assert ids.end - 1 == len(words), text
        assert ids.end < tiny.text_length - 1
    with pytest.raises(RequestError, match="--prompts 9"):
        prompts_for(concept, each=9, tiny=True)


@pytest.mark.parametrize("kind", [0, -1])
def test_other_bases_have_as_many_prompts_none_of_them_recorded(concepts, kind):
    prompts = prompts_for(concepts[kind], each=EACH, tiny=False)
    assert Counter(prompt.kind for prompt in prompts) == dict.fromkeys(KINDS, EACH)
    assert len({prompt.text for prompt in prompts}) == 4 * EACH
    assert not {prompt.text.removeprefix("a photo of ") for prompt in prompts} & {*RECORDED, *WATCHED}


def test_a_prompt_is_about_the_concept_or_about_its_class(concepts):
    apple = next(c for c in concepts if c.class_word == "apple")
    person = next(c for c in concepts if c.class_word == "person")
    red = next(p for p in prompts_for(apple, each=1, tiny=True) if p.kind == "attribute")
    assert red.about(apple.name, class_word="apple") == f"a red {apple.name} on a purple background"
    assert red.about_class("apple") == "a red apple on a purple background"
    plain = prompts_for(person, each=1, tiny=True)[0]
    assert plain.about_class("person") == about("V in the city", "a person")


def test_no_partner_is_of_the_concepts_own_class(concepts):
    for concept in concepts:
        for prompt in prompts_for(concept, each=EACH, tiny=True):
            assert prompt.partner(concept.class_word) != concept.class_word
            assert bool(prompt.partner(concept.class_word)) == (prompt.kind == "interaction")
