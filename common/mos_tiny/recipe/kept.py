"""Pictures of subjects that the base never saw: people, whole styles of people, and icon styles.

They are composed like training pictures, so that only the subject is new. Reconstruction and
teachability are measured on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

import numpy as np
from jaxtyping import UInt8

from mos_tiny.recipe.art import Art, load_art
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
    of_kind = concepts.where(unseenStyle=kind == "unseen styles")
    return [views for person, views in _people(concepts, of_kind).items() if person != SEEN]


def people_alike() -> list[list[Subject]]:
    """Return the views of each person of the set `alike`.

    They are of the base's own styles, and no picture for training shows their looks. Four share the
    letter of their "id" and their clothes, and differ in as few pixels as possible.
    """
    alike = load_art("alike")
    return list(_people(alike, range(len(alike.labels))).values())


def _people(art: Art, which: Iterable[int]) -> dict[tuple[str, object], list[Subject]]:
    """Return the views of each person of a set, by style and number."""
    views: dict[tuple[str, object], list[Subject]] = {}
    for i in which:
        label = art.labels[i]
        view = Subject(art.pictures[i], "V", person=True, label=label)
        views.setdefault((label["style"], label["id"]), []).append(view)
    return views


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
