"""Labelled pictures for witnesses to learn from, composed like the base's training pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from random import Random

import numpy as np

from mos_tiny.recipe.compose import Subject, World, place
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.sprites import recoloured
from mos_tiny.recipe.trials import COLOURS, PLACES, Place, Trial, composed
from mos_tiny.recipe.witnesses.features import Pictures
from mos_tiny.recipe.witnesses.witness import Lesson
from mos_tiny.recipe.world import HAIR, HUES, PALETTE, STYLES, nearest, with_article

PERSON = "person"
SQUARE = 64


def lesson_of(trials: Sequence[Trial]) -> Lesson:
    """Return the real pictures of trials with their true attributes."""
    return Lesson(pictures_of(trials), [trial.truth for trial in trials])


def pictures_of(trials: Sequence[Trial]) -> Pictures:
    """Return the real pictures of trials, in [-1, 1]."""
    return as_tensor(np.stack([trial.real for trial in trials]))


def classes(world: World, random: Random, each: int, more: Iterable[tuple[str, Sequence[Subject]]]) -> Lesson:
    """Compose `each` pictures of every noun of the world and of people of every style.

    `more` has further subjects by class, such as icons and people of unseen styles.
    """
    shown: dict[str, list[Subject]] = defaultdict(list)
    for noun, icons in world.by_noun.items():
        shown[noun] += [_icon(world, i) for i in icons]
    for name, subjects in more:
        shown[name] += subjects
    for i in world.people[:: max(1, len(world.people) // (8 * each))]:
        shown[person_of(world.characters.labels[i]["style"])].append(_person(world, i))
    named = [(name, views[turn % len(views)]) for name, views in shown.items() for turn in range(each)]
    return Lesson(in_random_places([view for _, view in named], random, world), [{"class": name} for name, _ in named])


def person_of(style: str) -> str:
    """Return the class of people of one style: a person who looks like no other style's."""
    return f"{PERSON} {style}"


def backgrounds(world: World, random: Random, width: int, count: int) -> Lesson:
    """Compose subjects in every place in turn: one, or two side by side in a wide picture."""
    places = [PLACES[i % len(PLACES)] for i in range(count)]
    pictures = as_tensor(np.stack([_in_place(where, width, random, world) for where in places]))
    return Lesson(pictures, [{"background": where.words} for where in places])


def people(world: World, random: Random, count: int) -> Lesson:
    """Compose people of the base's styles; truths are their visible traits, empty for no hair."""
    subjects = [world.person(random) for _ in range(count)]
    truths = [
        {
            "style": STYLES[label["style"]],
            "shirt": nearest(label["clothColor"], PALETTE),
            "hair": nearest(label["hairColor"], HAIR) if label.get("hair") else "",
        }
        for label in (subject.label for subject in subjects)
    ]
    return Lesson(in_random_places(subjects, random, world), truths)


def coloured_things(world: World, random: Random, count: int) -> Lesson:
    """Compose random things in random colours of `HUES`."""
    icons, subjects, truths = list(world.hues), [], []
    for _ in range(count):
        i, colour = random.choice(icons), random.choice(list(HUES))
        subjects.append(_coloured(world, i, colour))
        truths.append({"colour": colour})
    return Lesson(in_random_places(subjects, random, world), truths)


def things_in_all_colours(world: World, random: Random, each: int = 3) -> Lesson:
    """Compose every thing on white, `each` times in every colour of `HUES`."""
    pictures, truths = [], []
    for i, colour, _ in product(world.hues, HUES, range(each)):
        subject = _coloured(world, i, colour)
        pictures.append(composed(COLOURS[-1], [subject], random, world))
        truths.append({"noun": subject.label["noun"]})
    return Lesson(as_tensor(np.stack(pictures)), truths)


def in_random_places(subjects: Sequence[Subject], random: Random, world: World) -> Pictures:
    """Return one picture of each subject, at a random place."""
    return as_tensor(np.stack([composed(random.choice(PLACES), [subject], random, world) for subject in subjects]))


def _in_place(where: Place, width: int, random: Random, world: World) -> np.ndarray:
    canvas = where.canvas(width, random, world)
    for left in range(0, width, SQUARE):
        place(canvas, world.subject(random), left, SQUARE, random)
    pixels: np.ndarray = np.clip(canvas, 0, 255).astype(np.uint8)
    return pixels


def _coloured(world: World, i: int, colour: str) -> Subject:
    label = world.objects.labels[i]
    sprite = recoloured(world.objects.pictures[i], world.hues[i], colour)
    return Subject(sprite, with_article(label["noun"]), person=False, label=label)


def _icon(world: World, i: int) -> Subject:
    return Subject(world.objects.pictures[i], "", person=False, label=world.objects.labels[i])


def _person(world: World, i: int) -> Subject:
    return Subject(world.characters.pictures[i], "", person=True, label=world.characters.labels[i])
