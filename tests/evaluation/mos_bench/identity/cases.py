"""A case is one way to draw some concepts, scored; its figures are what tables, plots and the JSON file are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from mos_bench.identity.bench import Bench
from mos_bench.identity.concepts import BenchConcept
from mos_bench.identity.models import Model
from mos_bench.identity.scoring import PromptScores, Scores
from mos_bench.identity.statistics import ConceptScores, Interval, interval, paired, share, stacked

FIGURES = ("image_alignment", "identity_accuracy", "text_alignment", "diversity")
UNITS = {
    "identity_accuracy": "share",
    "all_recognised": "share",
    "identity_kept": "ratio",
    "drift": "1 - cosine",
    "diversity": "1 - cosine",
}
_OF: Mapping[str, Callable[[Scores], np.ndarray]] = {
    "image_alignment": lambda scores: scores.image.mean(axis=0),
    "identity_accuracy": lambda scores: scores.right.mean(axis=0),
    "text_alignment": lambda scores: scores.text.mean(axis=0),
    "diversity": lambda scores: np.array([scores.diversity]),
}


@dataclass(frozen=True)
class Case:
    """`about` says what it is (n, method, rank, variant, λ …); `scores` are by concept; `drift` is ordinary prompts × seeds.

    `whole`, of pictures that show several concepts, is pictures × seeds: whether each of them was recognised where it was asked to be.
    """

    name: str
    scores: Mapping[str, Scores]
    about: Mapping[str, object] = field(default_factory=dict)
    drift: PromptScores | None = None
    whole: Float[np.ndarray, "pictures seeds"] | None = None

    def matrix(self, figure: str, only: Sequence[str] | None = None) -> ConceptScores:
        """One row a concept (of `only`, or all), one column a seed."""
        return stacked([_OF[figure](scores) for name, scores in self.scores.items() if only is None or name in only])

    def figure(self, figure: str, only: Sequence[str] | None = None) -> Interval:
        """Its mean with a 95 % interval; `drift` over ordinary prompts, `all_recognised` over pictures."""
        if figure == "drift":
            return interval(self.drift if self.drift is not None else np.empty((0, 1)))
        if figure == "all_recognised":
            return share(self.whole if self.whole is not None else np.empty((0, 1)))
        found = interval(self.matrix(figure, only))
        return found.within(0, 1) if figure in ("identity_accuracy", "text_alignment") else found

    def change(self, figure: str, before: Case, only: Sequence[str] | None = None) -> Interval:
        """How much higher it is than before, on the same concepts and seeds."""
        return paired(self.matrix(figure, only), before.restricted(self).matrix(figure, only)).difference

    def restricted(self, other: Case) -> Case:
        """The same case on the concepts of another, in its order."""
        return replace(self, scores={name: self.scores[name] for name in other.scores})


def single_case(bench: Bench, models: Mapping[str, Model], concepts: Sequence[BenchConcept], name: str) -> Case:
    """Each concept under its own model; the drawings are made now."""
    requests = [request for concept in concepts for request in bench.drawings.requests(models[concept.name], concept)]
    bench.drawings.draw(requests, name)
    if bench.sharing.helper:
        return Case(name, {})
    return Case(name, {c.name: bench.scoring.scores(models[c.name], c) for c in concepts})


def shared_case(bench: Bench, model: Model, concepts: Sequence[BenchConcept], name: str, **about: object) -> Case:
    """Several concepts under one model, and what it does to ordinary prompts; the drawings are there. Helpers do not score."""
    if bench.sharing.helper:
        return Case(name, {}, about)
    scores = {concept.name: bench.scoring.scores(model, concept) for concept in concepts}
    return Case(name, scores, about, bench.scoring.drift(model))


def floor_case(bench: Bench, model: Model, concepts: Sequence[BenchConcept]) -> Case:
    """What the untouched base draws for the class word."""
    bench.drawings.draw([r for c in concepts for r in bench.drawings.requests(model, c, of_class=True)], "class word")
    if bench.sharing.helper:
        return Case("class word (floor)", {})
    return Case("class word (floor)", {c.name: bench.scoring.scores(model, c, of_class=True) for c in concepts})


def ceiling_case(bench: Bench, concepts: Sequence[BenchConcept]) -> Case:
    """What real pictures score, through the VAE (`references.Ceiling`); text: what the witnesses confirm of their class and place."""
    found: dict[str, Scores] = {}
    for concept in () if bench.sharing.helper else concepts:
        ceiling = bench.scoring.references.ceilings[concept.name]
        text = bench.scoring.text_ceiling(concept)
        image, right, said = (np.array([[value]]) for value in (ceiling.image, ceiling.accuracy, text))
        found[concept.name] = Scores(image, right, said, float("nan"))
    return Case("real pictures (ceiling)", found)
