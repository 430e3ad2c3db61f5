"""Trials of a base: prompts, real pictures that they describe, and the attributes to be recognised.

Each trial has its prompt, the prompt with an untrained word in place of the subject (for the
floor), a real picture of the prompt (for the ceiling, through the autoencoder), and the true
attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from random import Random

import numpy as np

from mos_tiny.recipe.art import Label
from mos_tiny.recipe.compose import Subject, World, hair_words, picture, place
from mos_tiny.recipe.scenes import flat, scene
from mos_tiny.recipe.sprites import recoloured
from mos_tiny.recipe.world import HAIR, HUES, PALETTE, SCENES, STYLES, nearest, with_article

UNTRAINED = "zqx"


@dataclass(frozen=True)
class Trial:
    """A prompt with its real picture; `truth` has the value of each attribute."""

    prompt: str
    untrained: str
    real: np.ndarray
    truth: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """A background and the words for it."""

    name: str
    words: str
    flat: bool

    def canvas(self, width: int, random: Random, world: World) -> np.ndarray:
        """Return a new picture of the place with nothing in it."""
        return flat(self.name, width) if self.flat else scene(self.name, width, random, world.icons)


COLOURS = [Place(name, f"on a {name} background", flat=True) for name in PALETTE]
DRAWN_SCENES = [Place(name, words, flat=False) for name, words in SCENES.items()]
PLACES = [*COLOURS, *DRAWN_SCENES]


def composed(where: Place, subjects: list[Subject], random: Random, world: World) -> np.ndarray:
    """Compose the subjects side by side in a place."""
    width = 64 * len(subjects)
    canvas = where.canvas(width, random, world)
    for i, subject in enumerate(subjects):
        place(canvas, subject, 64 * i, 64, random)
    pixels: np.ndarray = np.clip(canvas, 0, 255).astype(np.uint8)
    return pixels


def noun_trials(places: list[Place], each: int, world: World, random: Random) -> list[Trial]:
    """Make `each` trials of every noun, with the places in turn."""
    trials = []
    for number, (noun, turn) in enumerate(product(world.by_noun, range(each))):
        where = places[(number * 7 + turn) % len(places)]
        icon = random.choice(world.by_noun[noun])
        label = world.objects.labels[icon]
        subject = Subject(world.objects.pictures[icon], with_article(noun), person=False, label=label)
        real = composed(where, [subject], random, world)
        truth = {"noun": noun, "background": where.words}
        trials.append(Trial(f"{subject.caption} {where.words}", f"a {UNTRAINED} {where.words}", real, truth))
    return trials


def person_trials(count: int, world: World, random: Random, places: list[Place] | None = None) -> list[Trial]:
    """Make trials of people with visible hair, all styles equally often."""
    trials = []
    for turn in range(count):
        where = random.choice(places or COLOURS)
        subject = _someone(list(STYLES)[turn % len(STYLES)], world, random)
        truth = {
            "style": STYLES[subject.label["style"]],
            "hair colour": nearest(subject.label["hairColor"], HAIR),
            "eyes and mouth": "yes",
            "background": where.words,
        }
        untrained = f"a {UNTRAINED} {where.words}"
        trials.append(
            Trial(f"{subject.caption} {where.words}", untrained, composed(where, [subject], random, world), truth)
        )
    return trials


def pair_trials(count: int, world: World, random: Random) -> list[Trial]:
    """Make trials of two subjects on white: two coloured things and two people in turn."""
    trials = []
    for turn in range(count):
        if turn % 2:
            first, second = random.sample(list(STYLES), 2)
            pair = [_someone(first, world, random), _someone(second, world, random)]
            truth = " | ".join(f"{STYLES[s.label['style']]}, {nearest(s.label['hairColor'], HAIR)}" for s in pair)
        else:
            pair = _two_things(world, random)
            truth = " | ".join(f"{s.label['colour']} {s.label['noun']}" for s in pair)
        left, right = (subject.caption for subject in pair)
        sides = f"{left} on the left and {right} on the right on a white background".replace(",,", ",")
        untrained = f"a {UNTRAINED} on the left and a {UNTRAINED} on the right on a white background"
        real = composed(COLOURS[-1], pair, random, world)
        trials.append(Trial(sides, untrained, real, {"people" if turn % 2 else "things": truth}))
    return trials


def caption_trials(count: int, world: World, random: Random) -> list[Trial]:
    """Make trials of captions as in training, with the pictures that they describe."""
    trials = []
    for _ in range(count):
        real, caption = picture(world, random, 64)
        trials.append(Trial(caption, f"a {UNTRAINED}", real))
    return trials


def _someone(style: str, world: World, random: Random) -> Subject:
    """Choose a person of a style with visible hair."""
    fits: Callable[[Label], bool] = lambda label: bool(label["style"] == style and label.get("hair"))  # noqa: E731
    i = random.choice([i for i in world.people if fits(world.characters.labels[i])])
    label = world.characters.labels[i]
    noun = "man" if label.get("beard") else random.choice(["man", "woman"])
    beard = " and a beard" if label.get("beard") else ""
    caption = f"a {noun} with {hair_words(label)}{beard}, {STYLES[style]},"
    return Subject(world.characters.pictures[i], caption, person=True, label=label)


def _two_things(world: World, random: Random) -> list[Subject]:
    """Choose two different nouns in two different colours."""
    by_noun = {world.objects.labels[i]["noun"]: i for i in world.hues}
    pair = []
    for noun, colour in zip(random.sample(sorted(by_noun), 2), random.sample(list(HUES), 2), strict=True):
        i = by_noun[noun]
        sprite = recoloured(world.objects.pictures[i], world.hues[i], colour)
        label = {**world.objects.labels[i], "colour": colour}
        pair.append(Subject(sprite, with_article(f"{colour} {noun}"), person=False, label=label))
    return pair
