"""Composed pictures: their subjects, and captions that are true."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from mos_tiny.recipe.art import trained_characters, trained_objects
from mos_tiny.recipe.compose import NEW_ART, OLD_WORLD, compose
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.restyle import MANNERS
from mos_tiny.recipe.tokenizer import POSITIONS
from mos_tiny.recipe.witnesses.features import flat_background


def test_compositions_are_made_of_the_training_list_alone(world):
    """Every subject of the composer is in one of the two training lists."""
    assert {i for icons in world.by_noun.values() for i in icons} == set(trained_objects(world.objects))
    assert set(world.hues) <= set(trained_objects(world.objects))
    assert world.people == trained_characters(world.characters, world.concepts)


def test_the_same_seed_composes_the_same_pictures(world):
    (one, said), (again, said_again), (other, _) = (compose(world, 6, 128, seed) for seed in (3, 3, 4))
    assert said == said_again and (one == again).all() and (one != other).any()
    assert one.shape == (6, 64, 128, 3) and one.dtype == np.uint8


def test_captions_name_the_colour_of_the_background(world):
    pictures, captions = compose(world, 60, 64, 1)
    on_flat = [i for i, caption in enumerate(captions) if caption.endswith("background")]
    assert len(on_flat) > 20
    seen = flat_background(as_tensor(pictures[on_flat]))
    right = [f"on a {colour} background" in captions[i] for colour, i in zip(seen, on_flat, strict=True)]
    assert np.mean(right) > 0.9  # hair may reach into both corners


def test_captions_fit_and_are_words_that_the_base_knows(world, tiny):
    _, captions = compose(world, 150, 128, 2)
    assert max(len(tiny.tokenizer(caption).input_ids) for caption in captions) <= POSITIONS
    words = {word.strip(",") for caption in captions for word in caption.split()}
    spelt = {word for word in words if len(tiny.tokenizer.tokenize(word)) > 1}
    assert spelt <= {"light-skinned", "dark-skinned"}


def test_a_widened_world_keeps_its_words_fits_its_captions_and_mixes_as_it_says(widened, tiny):
    """More than half is the old world unchanged, whose words are one token each."""
    _, captions = compose(widened, 600, 64, 2)
    _, wide = compose(widened, 300, 128, 2)
    assert max(len(tiny.tokenizer(caption).input_ids) for caption in (*captions, *wide)) <= POSITIONS
    again = sum(any(manner.words in caption for manner in MANNERS) for caption in captions) / len(captions)
    assert again == pytest.approx(1 - OLD_WORLD - NEW_ART, abs=0.05)
    spelt = {"light-skinned", "dark-skinned"}
    old = [c for c in captions if all(len(tiny.tokenizer.tokenize(w.strip(","))) == 1 or w in spelt for w in c.split())]
    assert len(old) / len(captions) > OLD_WORLD - 0.03


def test_the_old_world_is_composed_without_the_wider_art(world):
    """The judge measures the old world: every subject is in one of the two training lists."""
    shown = {world.characters.pictures[i].tobytes() for i in world.people}
    random = Random(0)
    for _ in range(40):
        subject = world.subject(random)
        assert subject.sprite.tobytes() in shown if subject.person else subject.label["style"] == "noto"
        assert not any(manner.words in subject.caption for manner in MANNERS)
