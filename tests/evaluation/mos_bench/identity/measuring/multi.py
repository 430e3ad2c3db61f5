"""Several concepts in one picture, with and without regions, each scored in its own part.

A picture is as wide as its number of concepts: 64 x 128 for two, 64 x 192 for three. Concept i
belongs in the i-th part, which is cut out and recognised among all concepts. Without regions one
prompt names all concepts. With regions the prompt names their classes, and the prompt of region i
names concept i in place of its class, so it still describes the whole picture. The floor is the
untouched base with the class words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.concepts.tuning import ED_LORA
from mos_bench.identity.drawing.models import Model, untouched
from mos_bench.identity.drawing.requests import Request
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case
from mos_bench.identity.measuring.curve import choose_scale
from mos_bench.identity.measuring.methods import AVERAGE, GRADIENT, SUM_TUNED
from mos_bench.identity.measuring.paper_tables import FUSED
from mos_bench.identity.scoring.scorers import all_pairs, scored_by
from mos_bench.identity.scoring.scores import Scores
from mos_bench.identity.storage.cache import drawn_on, key_of, vector_bytes
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_tiny.recipe.world import with_article

CLASSES, NAMES, REGIONS = WAYS = ("class words", "one prompt", "with regions")
PLACES = ("in the city", "on a pink background", "in the desert", "in a room")


@dataclass(frozen=True)
class Scene:
    """The concepts of one picture, from left to right, and its place."""

    concepts: tuple[BenchConcept, ...]
    place: str

    def sentence(self, subjects: Sequence[str]) -> str:
        """Return one sentence about all of them."""
        if len(subjects) == 2:
            return f"{subjects[0]} on the left and {subjects[1]} on the right {self.place}"
        return f"{' and '.join(subjects)} {self.place}"


def scenes_of(concepts: Sequence[BenchConcept], size: int) -> list[Scene]:
    """Return scenes that start at every concept in a circle: each stands at every place once."""
    count = len(concepts) if len(concepts) > size else 1
    return [
        Scene(tuple(concepts[(i + j) % len(concepts)] for j in range(size)), PLACES[i % len(PLACES)])
        for i in range(count)
        if len(concepts) >= size
    ]


def request_for(bench: Bench, model: Model, scene: Scene, seed: int, way: str) -> Request:
    """Return a request for one picture of a scene, described in one of `WAYS`."""
    size, base = len(scene.concepts), bench.base
    shape = replace(bench.protocol.how, height=base.picture_size, width=size * base.picture_size)
    names = [concept.name for concept in scene.concepts]
    classes = [with_article(concept.class_word) for concept in scene.concepts]
    if way != REGIONS:
        text = scene.sentence(classes if way == CLASSES else names)
        return Request(model, text, seed, shape, base=drawn_on(base))
    boxes = []
    for i, name in enumerate(names):
        subjects = [name if i == j else classes[j] for j in range(size)]
        boxes.append(Region(scene.sentence(subjects), Box(i / size, 0, (i + 1) / size, 1)))
    return Request(model, scene.sentence(classes), seed, shape, tuple(boxes), drawn_on(base))


def measure_multi(bench: Bench, half: str, count: int = FUSED, sizes: Sequence[int] = (2, 3)) -> list[Case]:
    """Measure accuracy and image alignment in each part: the floor and three ways to fuse."""
    concepts = bench.half(half)[:count]
    bench.tuned.tune_all(concepts, ED_LORA, bench.sharing)
    scales = {SUM_TUNED.name: choose_scale(bench, SUM_TUNED, len(concepts), ED_LORA, [])}
    scenes = {size: scenes_of(bench.probed(concepts), size) for size in sizes}
    cases = [
        scene_case(bench, untouched(), scenes[size], CLASSES, f"{size} in one picture, class words (floor)")
        for size in sizes
    ]
    for method in (AVERAGE, SUM_TUNED, GRADIENT):
        spec = bench.spec(concepts, ED_LORA, method, scales.get(method.name, 1.0))
        bench.fuse_all([spec], f"{method.name} of {len(concepts)}")
        model = bench.fused.model(spec)
        cases += [
            scene_case(bench, model, scenes[size], way, f"{size} in one picture, {way}, {method.name}")
            for size in sizes
            for way in (NAMES, REGIONS)
        ]
    return [case for case in cases if case.scores]


def scene_case(bench: Bench, model: Model, scenes: Sequence[Scene], way: str, name: str) -> Case:
    """Draw scenes, described in one of `WAYS`, and score every concept in its own part."""
    seeds = range(bench.protocol.seeds)
    requests = {
        (i, seed): request_for(bench, model, scene, seed, way) for i, scene in enumerate(scenes) for seed in seeds
    }
    bench.drawings.draw(list(requests.values()), name)
    if bench.sharing.helper:
        return Case(name, {})
    rows: dict[str, list[list[tuple[float, float]]]] = {}
    keys: dict[str, list[str]] = {}
    whole = np.ones((len(scenes), len(seeds)))
    for i, scene in enumerate(scenes):
        for place, concept in enumerate(scene.concepts):
            drawn = [requests[i, seed].key for seed in seeds]
            row = [_scored(bench, key, place, len(scene.concepts), concept) for key in drawn]
            rows.setdefault(concept.name, []).append(row)
            keys.setdefault(concept.name, []).extend(drawn)
            whole[i] *= [right for _, right in row]
    scores = {concept: _scores(of_concept, keys[concept]) for concept, of_concept in rows.items()}
    return Case(name, scores, whole=whole)


def _scored(bench: Bench, key: str, place: int, size: int, concept: BenchConcept) -> tuple[float, float]:
    """Return image alignment of one part, and 1 if its concept was recognised there."""
    name = key_of(key, [place, size], scored_by(bench.scoring.scorer))
    if bench.cache.missing("features", [name]):
        picture = bench.cache.picture(key)
        side = picture.shape[2] // size
        part = picture[None, :, :, place * side : (place + 1) * side]
        bench.cache.put("features", {name: vector_bytes(bench.scoring.scorer.features(part)[0])})
    features = torch.nn.functional.normalize(bench.cache.vector(name)[None], dim=1)
    references = bench.scoring.references
    alike = float(all_pairs(features, references.held_back[concept.name])[0])
    return alike, float(references.recogniser.classify(features)[0] == concept.name)


def _scores(rows: Sequence[Sequence[tuple[float, float]]], drawings: Sequence[str]) -> Scores:
    both = np.array(rows, float)
    nothing = np.full(both.shape[:2], np.nan)
    return Scores(both[:, :, 0], both[:, :, 1], nothing, float("nan"), tuple(drawings))
