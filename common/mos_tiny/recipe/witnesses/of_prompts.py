"""The witnesses of text alignment: class, background, colour, style, shirt and hair of a drawing.

They learn through the base's autoencoder, since no drawing is sharper. They know the unseen styles
from other people and icons of those styles, never from a measured concept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from mos_tiny.recipe.compose import Subject, World
from mos_tiny.recipe.witnesses.classifier import nearest_whitened_mean
from mos_tiny.recipe.witnesses.features import Pictures
from mos_tiny.recipe.witnesses.lessons import SQUARE, backgrounds, classes, coloured_things, people
from mos_tiny.recipe.witnesses.witness import Lesson, Witness

SEED = 4000
RULE = partial(nearest_whitened_mean, ridge=0.2)


@dataclass(frozen=True)
class LessonSizes:
    """The number of pictures that the witnesses learn from: `each` per class."""

    each: int = 12
    scenes: int = 600
    people: int = 500
    colours: int = 500


def learn_of_prompts(
    rebuild: Callable[[Pictures], Pictures], sizes: LessonSizes, unseen: Iterable[tuple[str, Sequence[Subject]]]
) -> dict[str, Witness]:
    """Train one witness for each question.

    `rebuild` passes pictures through the autoencoder; `unseen` are subjects of unseen styles, by
    class.
    """
    world, random = World(), Random(SEED)

    def rebuilt(lesson: Lesson) -> Lesson:
        return Lesson(rebuild(lesson.pictures), lesson.truths)

    of_classes = rebuilt(classes(world, random, sizes.each, unseen))
    of_places = rebuilt(backgrounds(world, random, SQUARE, sizes.scenes))
    of_wide_places = rebuilt(backgrounds(world, random, 2 * SQUARE, sizes.scenes))
    of_things = rebuilt(coloured_things(world, random, sizes.colours))
    of_people = rebuilt(people(world, random, sizes.people))
    return {
        "class": Witness.learn(of_classes, "class", "image_features", RULE),
        "background": Witness.learn(of_places, "background", "thumbnail", RULE),
        "wide background": Witness.learn(of_wide_places, "background", "thumbnail", RULE),
        "colour": Witness.learn(of_things, "colour", "colours", RULE),
        "style": Witness.learn(of_people, "style", "image_features", RULE),
        "shirt": Witness.learn(of_people, "shirt", "colours", RULE),
        "hair": Witness.learn(of_people, "hair", "colours", RULE),
    }
