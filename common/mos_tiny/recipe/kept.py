"""Pictures of subjects that the base never saw: people, whole styles of people, and icon styles.

They are composed like training pictures, so that only the subject is new. Reconstruction and
teachability are measured on them.
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
"""An identity that the first weights did see (see `art.trained_characters`): left out."""


def kept_subjects(kind: str) -> list[list[Subject]]:
    """Return all unseen subjects of a kind: a list of views for each identity (one for an icon)."""
    if kind == "unseen objects":
        objects = load_art("objects")
        icons = [i for i, label in enumerate(objects.labels) if label["style"] in UNSEEN_ICONS]
        return [[Subject(objects.pictures[i], "V", person=False, label=objects.labels[i])] for i in icons]
    concepts = load_art("concepts")
    views: dict[tuple[str, int], list[Subject]] = {}
    for i in concepts.where(unseenStyle=kind == "unseen styles"):
        label = concepts.labels[i]
        if (label["style"], label["id"]) == SEEN:
            continue
        view = Subject(concepts.pictures[i], "V", person=True, label=label)
        views.setdefault((label["style"], label["id"]), []).append(view)
    return list(views.values())


def kept_pictures(
    kind: str, each: int = 2, *, seed: int = 0, world: World | None = None
) -> UInt8[np.ndarray, "n 64 64 3"]:
    """Compose `each` pictures of every unseen identity of a kind, on the world's backgrounds."""
    world, random = world or World(), Random(seed)
    pictures = []
    for views in kept_subjects(kind):
        for _ in range(each):
            canvas, _where = background(64, random, world.icons)
            place(canvas, random.choice(views), 0, 64, random)
            pictures.append(np.clip(canvas, 0, 255).astype(np.uint8))
    return np.stack(pictures)
