"""Cases: some concepts drawn in one way and scored, for the tables, plots and the JSON file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.drawing.models import Model
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.statistics import ConceptScores, Interval, interval, paired, share, stacked
from mos_bench.identity.scoring.scores import PromptScores, Scores

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
    """The scores of some concepts drawn in one way.

    `about` describes it (n, method, rank, variant, λ, …), `scores` are by concept, `drift` is
    ordinary prompts x seeds. `whole` is pictures x seeds for pictures of several concepts: 1 where
    every concept was recognised in its part.
    """

    name: str
    scores: Mapping[str, Scores]
    about: Mapping[str, object] = field(default_factory=dict)
    drift: PromptScores | None = None
    whole: Float[np.ndarray, "pictures seeds"] | None = None

    def matrix(self, figure: str, only: Sequence[str] | None = None) -> ConceptScores:
        """Return one row per concept (of `only`, or all) and one column per seed."""
        return stacked([_OF[figure](scores) for name, scores in self.scores.items() if only is None or name in only])

    def figure(self, figure: str, only: Sequence[str] | None = None) -> Interval:
        """Return the mean with a 95 % interval.

        `drift` is over ordinary prompts, `all_recognised` over pictures.
        """
        if figure == "drift":
            return interval(self.drift if self.drift is not None else np.empty((0, 1)))
        if figure == "all_recognised":
            return share(self.whole if self.whole is not None else np.empty((0, 1)))
        mean = interval(self.matrix(figure, only))
        return mean.within(0, 1) if figure in ("identity_accuracy", "text_alignment") else mean

    def over_drawings(self, only: Sequence[str] | None = None) -> Interval:
        """Return accuracy with its interval over drawings, the concepts and prompts as they are.

        Real pictures have none.
        """
        drawn = [s.right.reshape(-1, 1) for name, s in self.scores.items() if only is None or name in only]
        any_drawn = any(scores.drawings for scores in self.scores.values())
        return share(np.concatenate(drawn) if drawn and any_drawn else np.empty((0, 1)))

    def change(self, figure: str, before: Case, only: Sequence[str] | None = None) -> Interval:
        """Return the difference to `before` on the same concepts and seeds."""
        return paired(self.matrix(figure, only), before.restricted(self).matrix(figure, only)).difference

    def restricted(self, other: Case) -> Case:
        """Return the case on the concepts of another, in that one's order."""
        return replace(self, scores={name: self.scores[name] for name in other.scores})


def single_case(bench: Bench, models: Mapping[str, Model], concepts: Sequence[BenchConcept], name: str) -> Case:
    """Draw and score each concept under its own model."""
    requests = [request for concept in concepts for request in bench.drawings.requests(models[concept.name], concept)]
    bench.drawings.draw(requests, name)
    if bench.sharing.helper:
        return Case(name, {})
    return Case(name, {c.name: bench.scoring.scores(models[c.name], c) for c in concepts})


def shared_case(
    bench: Bench,
    models: Mapping[str, Model],
    ordinary: Model,
    concepts: Sequence[BenchConcept],
    name: str,
    **about: object,
) -> Case:
    """Score several concepts, each under its model, and the drift of `ordinary`.

    Their drawings must exist. Helpers do not score.
    """
    if bench.sharing.helper:
        return Case(name, {}, about)
    scores = {concept.name: bench.scoring.scores(models[concept.name], concept) for concept in concepts}
    return Case(name, scores, about, bench.scoring.drift(ordinary))


def floor_case(bench: Bench, model: Model, concepts: Sequence[BenchConcept]) -> Case:
    """Draw and score the class word on the untouched base."""
    bench.drawings.draw([r for c in concepts for r in bench.drawings.requests(model, c, of_class=True)], "class word")
    if bench.sharing.helper:
        return Case("class word (floor)", {})
    return Case("class word (floor)", {c.name: bench.scoring.scores(model, c, of_class=True) for c in concepts})


def ceiling_case(bench: Bench, concepts: Sequence[BenchConcept]) -> Case:
    """Score real pictures through the VAE (`references.Ceiling`).

    Text alignment is the share of their class and place that the witnesses confirm.
    """
    scores: dict[str, Scores] = {}
    for concept in () if bench.sharing.helper else concepts:
        ceiling = bench.scoring.references.ceilings[concept.name]
        text = bench.scoring.text_ceiling(concept)
        image, right, alignment = (np.array([[value]]) for value in (ceiling.image, ceiling.accuracy, text))
        scores[concept.name] = Scores(image, right, alignment, float("nan"))
    return Case("real pictures (ceiling)", scores)
