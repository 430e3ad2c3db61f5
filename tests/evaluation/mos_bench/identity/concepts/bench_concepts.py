"""The 128 concepts that identity is measured on, and their split into `dev` and `test`.

The base has seen none of them. The `first` 64 are of many kinds, the other 64 are people who look
`alike`, the paper's hardest case.

    11 people of the base's own styles    all of the set `concepts` that were kept from it
    32 people of eight unseen styles      four of each; witnesses learn from the others
    21 objects of two unseen icon styles  nouns of the base, evenly spaced, alternating styles
    64 people of the base's own styles    in groups of four who look alike, the set `alike`

Each has twelve composed pictures in the contexts of the demonstration; the last two are held back
from tuning, as for every participant. The pictures depend on the concept's name alone.

The split looks at names only. Within each style the concepts are ordered by the sha256 of their
names. Style after style they go to `dev` and `test` alternately, continuing across styles: each
style is halved, and `first` and `alike` are split 32 and 32 with and without each other. A group
stays together, as one concept: people who look alike must meet in a fused model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from mos_bench.pictures import compose_pictures
from mos_common.errors import RequestError
from mos_tiny.recipe.compose import Subject, World
from mos_tiny.recipe.demonstration import CONTEXTS
from mos_tiny.recipe.kept import KINDS, UNSEEN_ICONS, kept_subjects, people_alike
from mos_tiny.recipe.world import NOUNS

Split = Literal["dev", "test"]
PEOPLE_A_STYLE, OBJECTS = 4, 21
CATEGORIES = {
    "own styles": "people, own style",
    "unseen styles": "people, unseen style",
    "unseen objects": "objects",
    "alike": "people, alike",
}
SETS = ("first", "alike", "all")


@dataclass(frozen=True)
class BenchConcept:
    """A concept: its token, class word, category, style, pictures, and group of who look alike."""

    name: str
    class_word: str
    category: str
    style: str
    views: tuple[Subject, ...] = field(default=(), compare=False, repr=False)
    folder: Path | None = None
    group: str = ""

    @property
    def person(self) -> bool:
        """True for a person: people get prompts about looks, objects about colours."""
        return self.category != CATEGORIES["unseen objects"]

    @property
    def slug(self) -> str:
        """The name without brackets, for files."""
        return self.name.strip("<>")


def tiny_concepts(which: str = "first") -> list[BenchConcept]:
    """Return the concepts of one of `SETS`, by kind and style."""
    first = [] if which == "alike" else [*(concept for kind in KINDS[:2] for concept in _people(kind)), *_objects()]
    return first if which == "first" else [*first, *_alike()]


def spare_people() -> list[list[Subject]]:
    """Return people of the unseen styles that are no concept, for witnesses to learn from."""
    chosen = {concept.name for concept in tiny_concepts()}
    return [views for views in kept_subjects("unseen styles") if _name(views[0]) not in chosen]


def spare_icons() -> list[Subject]:
    """Return icons of the unseen styles that show a noun of the world and are no concept."""
    chosen = {concept.name for concept in tiny_concepts()}
    icons = [views[0] for views in kept_subjects("unseen objects")]
    return [icon for icon in icons if icon.label["noun"] in NOUNS and _name(icon) not in chosen]


def concepts_in(folder: Path) -> list[BenchConcept]:
    """Return the concepts for another base: one folder of pictures each.

    Each folder has a `concept.json` with "name", "class" and "category". The category decides the
    prompts: "objects" get colours, any other ("people", "animals", …) gets looks.

    Raises:
        RequestError: no concept was found, or one is incomplete.

    """
    concepts = []
    for about in sorted(folder.glob("*/concept.json")):
        try:
            labels = json.loads(about.read_text(encoding="utf-8"))
            name, class_word, category = (str(labels[key]) for key in ("name", "class", "category"))
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(
                f'{about}: expected {{"name": "<cat>", "class": "cat", "category": "people"}}'
            ) from error
        concepts.append(BenchConcept(name, class_word, category, category, folder=about.parent))
    if not concepts:
        raise RequestError(f"no concepts in {folder}: expected folders of pictures, each with a concept.json")
    return concepts


def split(concepts: Sequence[BenchConcept]) -> dict[Split, list[BenchConcept]]:
    """Return `dev` and `test` by the rule above."""
    styles = dict.fromkeys((concept.category, concept.style) for concept in concepts)
    in_turns = [group for style in styles for group in _groups(c for c in concepts if (c.category, c.style) == style)]
    return {"dev": list(chain(*in_turns[::2])), "test": list(chain(*in_turns[1::2]))}


def in_fusion_order(concepts: Sequence[BenchConcept]) -> list[BenchConcept]:
    """Return an order in which every prefix has each category in its share.

    The first n are fused. Concept i of a category's m stands at (i + ½)/m; within a category a
    style returns only after all others, and a group is complete before the next begins.
    """
    places = {}
    for category in dict.fromkeys(concept.category for concept in concepts):
        members = [concept for concept in concepts if concept.category == category]
        turns: dict[str, int] = {}
        ranked = []
        for i, group in enumerate(_groups(members)):
            turns[group[0].style] = turns.get(group[0].style, -1) + 1
            ranked.append((turns[group[0].style], i, group))
        for i, concept in enumerate(chain.from_iterable(group for _, _, group in sorted(ranked))):
            places[concept.name] = (i + 0.5) / len(members)
    return sorted(concepts, key=lambda concept: (places[concept.name], _hash(concept.name)))


def _groups(concepts: Iterable[BenchConcept]) -> list[list[BenchConcept]]:
    """Return groups by the hash of their names, with members by hash; one alone is a group."""
    groups: dict[str, list[BenchConcept]] = {}
    for concept in sorted(concepts, key=lambda concept: _hash(concept.name)):
        groups.setdefault(concept.group or concept.name, []).append(concept)
    return [groups[name] for name in sorted(groups, key=_hash)]


def described(concepts: Sequence[BenchConcept]) -> str:
    """Return how many concepts there are of each category and style."""
    categories = Counter(concept.category for concept in concepts)
    styles = {name: Counter(c.style for c in concepts if c.category == name) for name in categories}
    return "; ".join(
        f"{count} {name} ({', '.join(f'{of_style} {style}' for style, of_style in styles[name].items())})"
        for name, count in categories.items()
    )


def write_pictures(concept: BenchConcept, folder: Path, world: World) -> Path:
    """Write the concept's twelve captioned pictures to `folder`/NAME unless they exist.

    A concept with its own folder keeps it.
    """
    if concept.folder is not None:
        return concept.folder
    to = folder / concept.slug
    if not (to / f"{len(CONTEXTS):02}.txt").is_file():  # it is written last
        compose_pictures(to, concept.name, concept.views, world)
    return to


def _people(kind: str) -> list[BenchConcept]:
    chosen: dict[str, list[BenchConcept]] = {}
    for views in kept_subjects(kind):
        style = str(views[0].label["style"])
        if len(of_style := chosen.setdefault(style, [])) < PEOPLE_A_STYLE:
            concept = BenchConcept(_name(views[0]), _class_word(views[0]), CATEGORIES[kind], style, tuple(views))
            of_style.append(concept)
    return [concept for of_style in chosen.values() for concept in of_style]


def _alike() -> list[BenchConcept]:
    concepts = []
    for views in people_alike():
        name, style, number = _name(views[0]), str(views[0].label["style"]), str(views[0].label["id"])
        category, group = CATEGORIES["alike"], f"{style} {number[0]}"  # person a1 is of group a
        concepts.append(BenchConcept(name, _class_word(views[0]), category, style, tuple(views), group=group))
    return concepts


def _objects() -> list[BenchConcept]:
    icons: dict[tuple[str, str], Subject] = {}
    for (icon,) in kept_subjects("unseen objects"):
        icons.setdefault((icon.label["style"], icon.label["noun"]), icon)
    nouns = sorted(noun for noun in NOUNS if all((style, noun) in icons for style in UNSEEN_ICONS))
    chosen = [nouns[i * len(nouns) // OBJECTS] for i in range(OBJECTS)]
    concepts = []
    for start, style in enumerate(UNSEEN_ICONS):
        for noun in chosen[start :: len(UNSEEN_ICONS)]:
            icon = icons[style, noun]
            concepts.append(BenchConcept(_name(icon), noun, CATEGORIES["unseen objects"], style, (icon,)))
    return concepts


def _class_word(view: Subject) -> str:
    """Return the word that the base's captions would use: man, woman, else person."""
    label = view.label
    if label["unseenStyle"]:
        return "person"
    long = label.get("hair") == "long" or label.get("hairKind") in ("pigtails", "bun")
    return "woman" if long and not label.get("beard") else "man"


def _name(view: Subject) -> str:
    return f"<{view.label['style']}-{view.label.get('id', view.label.get('icon'))}>".lower()


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
