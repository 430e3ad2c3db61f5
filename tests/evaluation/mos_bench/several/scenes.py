"""What is asked for: who stands where, in which place, and in which words.

The first n concepts stand in a circle. A picture takes one of them and those that follow it at
equal steps; in every round of the circle each concept stands at every place once, and the next
round has another step, so that everybody meets others. Each picture has a seed of its own, the same
for every way to draw it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, cycle, islice

from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_tiny.recipe.world import with_article

PLACES = ("in the city", "on a pink background", "in the desert", "in a room")
SIDE = 64


@dataclass(frozen=True)
class Layout:
    """Where concepts stand: the (left, right) of each one's region, as shares of the width.

    With `one_class`, all are of the class that most concepts are of.
    """

    slug: str
    title: str
    spans: tuple[tuple[float, float], ...]
    one_class: bool = False

    @property
    def width(self) -> int:
        """The width of a picture, in pixels."""
        return SIDE * len(self.spans)

    def circle(self, concepts: Sequence[BenchConcept]) -> list[BenchConcept]:
        """Return the concepts that its pictures show.

        Raises:
            RequestError: they are too few for a picture.

        """
        (commonest, _), *_ = Counter(concept.class_word for concept in concepts).most_common(1)
        circle = [concept for concept in concepts if concept.class_word == commonest or not self.one_class]
        if len(circle) < len(self.spans):
            raise RequestError(
                f"{self.title}: {len(circle)} of {len(concepts)} concepts can stand in a picture of "
                f"{len(self.spans)}: fuse more concepts (--n), or leave it out (--only)"
            )
        return circle

    def part(self, picture: Float[Tensor, "3 side width"], k: int) -> Float[Tensor, "3 side side"]:
        """Return the square part around the middle of the k-th region."""
        left, right = self.spans[k]
        begin = round((left + right) / 2 * self.width - SIDE / 2)
        begin = min(max(begin, 0), self.width - SIDE)
        return picture[..., begin : begin + SIDE]


ALONE = Layout("alone", "one alone", ((0, 1),))
LAYOUTS = (
    Layout("two", "two", ((0, 0.5), (0.5, 1))),
    Layout("three", "three", ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1))),
    Layout("one-class", "two of one class", ((0, 0.5), (0.5, 1)), one_class=True),
    Layout("overlap", "two, 30 % overlap", ((0, 0.65), (0.35, 1))),
)


@dataclass(frozen=True)
class Asked:
    """One picture: its concepts from left to right, its place and its seed."""

    layout: Layout
    concepts: tuple[BenchConcept, ...]
    place: str
    seed: int

    @property
    def names(self) -> list[str]:
        """The concepts' tokens."""
        return [concept.name for concept in self.concepts]

    @property
    def prompt(self) -> str:
        """The prompt that names all concepts."""
        return sentence(self.names, self.place)

    @property
    def in_class_words(self) -> str:
        """The same in class words."""
        return sentence([with_article(concept.class_word) for concept in self.concepts], self.place)

    @property
    def regions(self) -> list[Region]:
        """A region for each concept: its prompt names that one, and the others by class word."""
        regions = []
        for k, (left, right) in enumerate(self.layout.spans):
            subjects = [with_article(concept.class_word) for concept in self.concepts]
            subjects[k] = self.names[k]
            regions.append(Region(sentence(subjects, self.place), Box(left, 0, right, 1)))
        return regions

    def sized(self, how: Drawing) -> Drawing:
        """Return the settings for a picture of its size."""
        return replace(how, height=SIDE, width=self.layout.width)

    def said(self) -> list[object]:
        """Return all that a drawing of it depends on, as a JSON value."""
        regions = [asdict(region) for region in self.regions]
        return [self.names, self.prompt, self.in_class_words, regions, self.layout.width, self.seed]


def scenes(layout: Layout, concepts: Sequence[BenchConcept], pictures: int) -> list[Asked]:
    """Return so many pictures of a layout.

    Raises:
        RequestError: the concepts are too few for a picture.

    """
    return list(islice(_endless(layout, layout.circle(concepts)), pictures))


def _endless(layout: Layout, circle: Sequence[BenchConcept]) -> Iterator[Asked]:
    size, members = len(circle), len(layout.spans)
    # Nobody stands in a picture twice: no multiple of the step leads back to where it began.
    steps = [step for step in range(1, size + 1) if all(k * step % size for k in range(1, members))]
    seeds = count()
    for turn, step in enumerate(cycle(steps)):
        for i in range(size):
            concepts = tuple(circle[(i + k * step) % size] for k in range(members))
            yield Asked(layout, concepts, PLACES[(i + turn) % len(PLACES)], next(seeds))


def sentence(subjects: Sequence[str], place: str) -> str:
    """Return one sentence about all subjects, from left to right."""
    if len(subjects) == 2:
        return f"{subjects[0]} on the left and {subjects[1]} on the right {place}"
    return f"{' and '.join(subjects)} {place}"
