"""The trials of a study put together: random names for pictures, and catch trials.

Two pictures of a trial stand in the order of their random names, so the order means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.study.page import Shown
from mos_bench.study.trials import RIGHT, WRONG, Trial, random_name
from mos_common.errors import RequestError
from mos_tiny.recipe.world import with_article


@dataclass(frozen=True)
class Cell:
    """One prompt of a concept with one seed; `place` is its place among the concept's drawings."""

    concept: BenchConcept
    text: str
    seed: int
    place: int


@dataclass(frozen=True)
class Real:
    """Real pictures of a concept: those shown beside its trials, and others, through the VAE."""

    shown: Float[Tensor, "n 3 h w"]
    others: Sequence[tuple[str, Tensor]]


class Assembly:
    """The trials so far, what the page shows of them, and all pictures by their random names."""

    def __init__(self, real: Mapping[str, Real]) -> None:
        self.real = real
        self.trials: list[Trial] = []
        self.shown: list[Shown] = []
        self.pictures: dict[str, Tensor] = {}
        self._references = {
            name: [self._named(picture) for picture in of_concept.shown] for name, of_concept in real.items()
        }

    def add(self, cell: Cell, methods: Sequence[str], pictures: Sequence[Tensor]) -> None:
        """Add a trial with two pictures."""
        names = [self._named(picture) for picture in pictures]
        concept, trial = cell.concept, random_name()
        made_by = dict(sorted(zip(names, methods, strict=True)))
        self.trials.append(Trial(trial, concept.name, cell.text, cell.seed, made_by))
        subject, references = with_article(concept.class_word), self._references[concept.name]
        self.shown.append(Shown(trial, cell.text, subject, references, list(made_by)))

    def add_catches(self, concepts: Sequence[BenchConcept], count: int) -> None:
        """Add trials whose answer is known; the concepts take turns."""
        for turn, concept in zip(range(count), cycle(concepts), strict=False):
            mine = self.real[concept.name].others
            text, picture = mine[turn % len(mine)]
            theirs = self.real[_most_unlike(concept, concepts, turn).name].others
            elsewhere = [other for caption, other in theirs if caption != text] or [other for _, other in theirs]
            wrong = elsewhere[turn % len(elsewhere)]
            self.add(Cell(concept, text, 0, 0), (RIGHT, WRONG), (picture, wrong))

    def _named(self, picture: Tensor) -> str:
        name = random_name()
        self.pictures[name] = picture
        return name


def _most_unlike(concept: BenchConcept, concepts: Sequence[BenchConcept], turn: int) -> BenchConcept:
    """Return a concept of the other kind (person or thing), else of another class, else another."""
    others = [other for other in concepts if other.name != concept.name]
    if not others:
        raise RequestError("--catches needs a second concept to show: give a larger --probed, or --catches 0")
    unlike = [other for other in others if other.person != concept.person]
    unlike = unlike or [other for other in others if other.class_word != concept.class_word] or others
    return unlike[turn % len(unlike)]
