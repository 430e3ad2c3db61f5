"""The prompts: 8 context, 8 style, 8 interaction and 8 attribute prompts.

The first five of each kind are as many as in the paper.

They use the words that `tiny` knows (`mos_tiny.recipe.world`); other bases have a second list in
ordinary English. No background is one that fusion records of a concept
(`mos_common.prompts.RECORDED`); five are in ordinary prompts that the base is recorded on.
Interactions are wide pictures on `tiny`, which learnt two subjects side by side in 64 x 128; only
the concept's half is scored.

A prompt knows what its picture must show: `background`, `partner` (the other subject), and a `look`
(a person's style, hair or clothes, an object's colour). The witnesses can check all of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_common.errors import RequestError
from mos_tiny.recipe.world import with_article

Kind = Literal["context", "style", "interaction", "attribute"]
Side = Literal["", "left", "right"]
KINDS: tuple[Kind, ...] = ("context", "style", "interaction", "attribute")
EACH = 8


@dataclass(frozen=True)
class Prompt:
    """One prompt about V. The partner is the first of `partners` that is not V's class."""

    kind: Kind
    text: str
    background: str = ""
    look: tuple[str, str] = ("", "")
    partners: tuple[str, ...] = ()
    side: Side = ""

    def about(self, subject: str, *, class_word: str) -> str:
        """Return the prompt with a concept's token in place of V."""
        text = self.text.replace("PARTNER", with_article(self.partner(class_word) or "x"))
        return re.sub(r"\bV\b", lambda _: subject, text)

    def about_class(self, class_word: str) -> str:
        """Return the prompt about the class: "a red V" is "a red car", "V" is "a car"."""
        text = self.text.replace("PARTNER", with_article(self.partner(class_word) or "x"))
        text = re.sub(r"\b(a|an) (\w+) V\b", lambda match: f"{match[1]} {match[2]} {class_word}", text)
        return re.sub(r"\bV\b", lambda _: with_article(class_word), text)

    def partner(self, class_word: str) -> str:
        """Return the other subject in the picture, or an empty string."""
        return next((noun for noun in self.partners if noun != class_word), "")


def _context(where: str) -> Prompt:
    return Prompt("context", f"V {where}", where)


def _style(style: str, where: str) -> Prompt:
    return Prompt("style", f"V, {style}, {where}", where, ("style", style))


def _with(side: Side, text: str, where: str, *partners: str) -> Prompt:
    return Prompt("interaction", f"{text} {where}", where, partners=partners, side=side)


def _look(text: str, what: str, value: str, where: str) -> Prompt:
    return Prompt("attribute", f"{text} {where}", where, (what, value))


_CONTEXTS = (
    *map(_context, ("in the city", "in the forest", "on a blue background", "in the desert", "in a room")),
    *(_context(f"on {colour} background") for colour in ("a pink", "an orange", "a purple")),
)
_STYLES = (
    _style("toon style", "on a pink background"),
    _style("outline style", "in the desert"),
    _style("flat style", "on an orange background"),
    _style("toon style", "in a room"),
    _style("outline style", "on a purple background"),
    _style("flat style", "in the city"),
    _style("toon style", "on a blue background"),
    _style("outline style", "in the forest"),
)
_INTERACTIONS = (
    _with("left", "V on the left and PARTNER on the right", "in the desert", "dog", "book"),
    _with("right", "PARTNER on the left and V on the right", "on a blue background", "car", "cat"),
    _with("left", "V next to PARTNER", "in the city", "balloon", "house"),
    _with("right", "PARTNER next to V", "on a pink background", "tree", "star"),
    _with("left", "V and PARTNER", "in the forest", "chair", "umbrella"),
    _with("right", "PARTNER on the left and V on the right", "on a purple background", "guitar", "bear"),
    _with("left", "V next to PARTNER", "on an orange background", "cactus", "bus"),
    _with("right", "PARTNER and V", "in a room", "penguin", "pizza"),
)
_OF_PEOPLE = (
    _look("V with a red shirt", "shirt", "red", "on a purple background"),
    _look("V with long blue hair", "hair", "blue", "in the city"),
    _look("V with short white hair", "hair", "white", "on an orange background"),
    _look("V with a yellow shirt", "shirt", "yellow", "in a room"),
    _look("V with short pink hair", "hair", "pink", "in the forest"),
    _look("V with a green shirt", "shirt", "green", "in the desert"),
    _look("V with a blue shirt", "shirt", "blue", "on a pink background"),
    _look("V with a pink shirt", "shirt", "pink", "on a blue background"),
)
_OF_OBJECTS = (
    _look("a red V", "colour", "red", "on a purple background"),
    _look("a blue V", "colour", "blue", "in the city"),
    _look("a green V", "colour", "green", "on an orange background"),
    _look("a yellow V", "colour", "yellow", "in a room"),
    _look("a purple V", "colour", "purple", "in the forest"),
    _look("an orange V", "colour", "orange", "in the desert"),
    _look("a pink V", "colour", "pink", "on a blue background"),
    _look("a red V", "colour", "red", "on a pink background"),
)

_REAL_CONTEXTS = (
    "in the jungle",
    "on a cobblestone street",
    "in front of the Eiffel Tower",
    "on a wooden floor",
    "in a garden",
    "in a kitchen",
    "on a mountain",
    "at a train station",
)
_REAL_STYLES = (
    "an oil painting of V",
    "a watercolor of V",
    "a pencil sketch of V",
    "V in pixel art style",
    "a marble statue of V",
    "a woodcut of V",
    "V as a paper collage",
    "a comic panel of V",
)
_REAL_INTERACTIONS = (
    "V next to a dog",
    "V and a bicycle",
    "V next to a red car",
    "V holding a flower",
    "V beside a campfire",
    "V next to a guitar",
    "V and a pile of books",
    "V under an umbrella",
)
_REAL_OF_PEOPLE = (
    *("V wearing a red hat", "V wearing sunglasses", "a smiling V", "V in a suit", "V with a beard"),
    *("V wearing a green scarf", "V in a raincoat", "V with long hair"),
)
_REAL_OF_OBJECTS = (
    *("a red V", "a blue V", "a wet V", "a shiny V", "a small V"),
    *("a green V", "a golden V", "a striped V"),
)


def prompts_for(concept: BenchConcept, *, each: int, tiny: bool) -> list[Prompt]:
    """Return the first `each` prompts of every kind that fit the concept.

    Raises:
        RequestError: `each` is out of range.

    """
    if not 1 <= each <= EACH:
        raise RequestError(f"--prompts {each}: there are {EACH} of each of {len(KINDS)} kinds, expected 1 to {EACH}")
    chosen: list[Prompt] = []
    for prompts in _tiny(concept) if tiny else _real(concept):
        chosen += prompts[:each]
    return chosen


def _tiny(concept: BenchConcept) -> tuple[tuple[Prompt, ...], ...]:
    return _CONTEXTS, _STYLES, _INTERACTIONS, _OF_PEOPLE if concept.person else _OF_OBJECTS


def _real(concept: BenchConcept) -> tuple[tuple[Prompt, ...], ...]:
    attributes = _REAL_OF_PEOPLE if concept.person else _REAL_OF_OBJECTS
    return (
        tuple(Prompt("context", f"a photo of V {where}", where) for where in _REAL_CONTEXTS),
        tuple(Prompt("style", text) for text in _REAL_STYLES),
        tuple(Prompt("interaction", text) for text in _REAL_INTERACTIONS),
        tuple(Prompt("attribute", text) for text in attributes),
    )
