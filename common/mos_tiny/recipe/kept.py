"""Pictures of what the base never saw: people of its own styles, whole styles, and icon styles that were kept from it.

They are composed as its training pictures are, so that nothing but the subject is new. Whoever measures reconstruction or
teachability measures it on these.
"""

from __future__ import annotations

from random import Random

import numpy as np
from jaxtyping import UInt8

from mos_tiny.recipe.art import load_art
from mos_tiny.recipe.compose import Subject, World, place
from mos_tiny.recipe.scenes import background

KINDS = ("own styles", "unseen styles", "unseen objects")
UNSEEN_ICONS = ("fluent", "twemoji")
SEEN = ("personas", 0)
"""A kept identity that the first weights have seen after all (see `mos_tiny.recipe.art.trained_characters`): measured no more."""


def kept_subjects(kind: str) -> list[list[Subject]]:
    """All that was kept of one kind: one list of views for each identity (an icon has one view)."""
    if kind == "unseen objects":
        objects = load_art("objects")
        icons = [i for i, label in enumerate(objects.labels) if label["style"] in UNSEEN_ICONS]
        return [[Subject(objects.pictures[i], "V", person=False, label=objects.labels[i])] for i in icons]
    concepts = load_art("concepts")
    found: dict[tuple[str, int], list[Subject]] = {}
    for i in concepts.where(unseenStyle=kind == "unseen styles"):
        label = concepts.labels[i]
        if (label["style"], label["id"]) == SEEN:
            continue
        view = Subject(concepts.pictures[i], "V", person=True, label=label)
        found.setdefault((label["style"], label["id"]), []).append(view)
    return list(found.values())


def kept_pictures(
    kind: str, each: int = 2, *, seed: int = 0, world: World | None = None
) -> UInt8[np.ndarray, "n 64 64 3"]:
    """`each` pictures of every identity of one kind, on the backgrounds of the tiny world; the same for the same seed."""
    world, random = world or World(), Random(seed)
    pictures = []
    for views in kept_subjects(kind):
        for _ in range(each):
            canvas, _where = background(64, random, world.icons)
            place(canvas, random.choice(views), 0, 64, random)
            pictures.append(np.clip(canvas, 0, 255).astype(np.uint8))
    return np.stack(pictures)
