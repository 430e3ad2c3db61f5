"""Scores of drawings that are in the cache.

A score of a concept is a matrix with one row per prompt and one column per seed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.concepts.prompts import Prompt
from mos_bench.identity.concepts.tuning import TunedConcepts
from mos_bench.identity.drawing.models import Model, untouched
from mos_bench.identity.drawing.protocol import ConceptDrawings
from mos_bench.identity.scoring.claims import ClaimChecker, claims_of, part_of
from mos_bench.identity.scoring.references import References, references_of
from mos_bench.identity.scoring.scorers import Clip, Scorer, all_pairs, clip_text_alignment, scored_by
from mos_bench.identity.storage.cache import key_of, vector_bytes
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import find_pictures
from mos_common.prompts import UNRELATED
from mos_tiny.recipe.demonstration import CONTEXTS
from mos_tiny.recipe.world import SCENES

PromptScores = Float[np.ndarray, "prompts seeds"]


@dataclass(frozen=True)
class Scores:
    """The scores of one concept under one model. `drawings` are cache keys, prompt after prompt."""

    image: PromptScores
    right: PromptScores
    text: PromptScores
    diversity: float
    drawings: tuple[str, ...] = ()


@dataclass
class Scoring:
    """Scores of concepts and models; `clip` is None on the tiny world."""

    drawings: ConceptDrawings
    concepts: Sequence[BenchConcept]
    tuned: TunedConcepts
    scorer: Scorer
    claims: ClaimChecker
    folder: Path
    clip: Clip | None = None
    _references: References | None = None

    def __post_init__(self) -> None:
        self.base, self.cache = self.drawings.base, self.drawings.cache
        self.seeds = self.drawings.protocol.seeds

    @property
    def references(self) -> References:
        """The references of all concepts, computed at first use."""
        if self._references is None:
            self._references = references_of(self.base, self.tuned, self.concepts, self.scorer, self.cache)
        return self._references

    def scores(self, model: Model, concept: BenchConcept, *, of_class: bool = False) -> Scores:
        """Score the drawings of a concept, which must be in the cache."""
        requests, prompts = self.drawings.requests(model, concept, of_class=of_class), self.drawings.prompts(concept)
        keys = [request.key for request in requests]
        features = self.features(keys, self.drawings.sides(concept))
        shape = (len(prompts), self.seeds)
        names = self.references.recogniser.classify(features)
        by_prompt = features.reshape(*shape, -1)
        pairs = list(combinations(range(self.seeds), 2))
        diversity = [1 - float((by_prompt[:, i] * by_prompt[:, j]).sum(dim=1).mean()) for i, j in pairs]
        image = all_pairs(features, self.references.held_back[concept.name])
        return Scores(
            image=image.numpy().astype(float).reshape(shape),
            right=np.array([name == concept.name for name in names], float).reshape(shape),
            text=np.array(self._text(keys, prompts, concept)).reshape(shape),
            diversity=float(np.mean(diversity)) if pairs else float("nan"),
            drawings=tuple(keys),
        )

    def image_alignment(self, pairs: Sequence[tuple[Model, BenchConcept]]) -> float:
        """Return the mean image alignment over concepts, each drawn by its model."""
        means = []
        for model, concept in pairs:
            keys = [request.key for request in self.drawings.requests(model, concept)]
            features = self.features(keys, self.drawings.sides(concept))
            means.append(float(all_pairs(features, self.references.held_back[concept.name]).mean()))
        return float(np.mean(means))

    def choice_file(self, pairs: Sequence[tuple[Model, BenchConcept]]) -> Path:
        """Return the file of a choice by `image_alignment`, named by drawings and references."""
        drawings = [[request.key for request in self.drawings.requests(*pair)] for pair in pairs]
        key = key_of(drawings, [self.tuned.digest(concept) for _, concept in pairs], scored_by(self.scorer))
        return self.folder / "choices" / f"{key}.json"

    def text_ceiling(self, concept: BenchConcept) -> float:
        """Return the share of true claims (class, place) confirmed on the concept's real pictures.

        It is NaN for CLIP.
        """
        if self.clip is not None or not concept.views:
            return float("nan")
        name = key_of("real", self.tuned.digest(concept), self.claims.name)
        if self.cache.missing("answers", [name]):
            real = load_pictures(find_pictures(self.tuned.pictures(concept)), self.base.picture_size)
            rebuilt = self.base.decode_latents(self.base.encode_pictures(real))
            questions = []
            for context, picture in zip(CONTEXTS, rebuilt, strict=True):
                where = SCENES.get(context, f"on a {context} background")
                questions += [(picture, claim) for claim in claims_of(Prompt("context", "V", where), concept)]
            share = float(np.mean(self.claims.confirmed(questions)))
            self.cache.put("answers", {name: json.dumps(share).encode()})
        return float(self.cache.answer(name))

    def drift(self, model: Model) -> PromptScores:
        """Return 1 - cosine between the drawings of ordinary prompts by a model and by the base."""
        changed, original = (
            self.features([request.key for request in self.drawings.unrelated(which)]) for which in (model, untouched())
        )
        return (1 - (changed * original).sum(dim=1)).clamp(min=0).numpy().astype(float).reshape(len(UNRELATED), -1)

    def features(self, keys: Sequence[str], sides: Sequence[str] = ()) -> Float[Tensor, "n features"]:
        """Return the features of drawings or of their halves; compute those not in the cache."""
        sides = sides or [""] * len(keys)
        names = [key_of(key, side, scored_by(self.scorer)) for key, side in zip(keys, sides, strict=True)]
        missing = set(self.cache.missing("features", names))
        new = {name: (key, side) for name, key, side in zip(names, keys, sides, strict=True) if name in missing}
        by_shape: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, (key, side) in new.items():
            part = part_of(self.cache.picture(key), side)  # type: ignore[arg-type]
            by_shape.setdefault(tuple(part.shape), {})[name] = part
        for parts in by_shape.values():
            vectors = self.scorer.features(torch.stack(list(parts.values())))
            self.cache.put("features", {n: vector_bytes(v) for n, v in zip(parts, vectors, strict=True)})
        return torch.nn.functional.normalize(torch.stack([self.cache.vector(name) for name in names]), dim=1)

    def _text(self, keys: Sequence[str], prompts: Sequence[Prompt], concept: BenchConcept) -> list[float]:
        if self.clip is not None:
            prefixed = [prompt.about_class(concept.class_word) for prompt in prompts for _ in range(self.seeds)]
            pictures = torch.stack([self.cache.picture(key) for key in keys])
            alignment: list[float] = clip_text_alignment(
                self.clip.features(pictures), self.clip.text_features(prefixed)
            ).tolist()
            return alignment
        claims = [
            (key, claim)
            for key, prompt in zip(keys, np.repeat(np.array(prompts, object), self.seeds), strict=True)
            for claim in claims_of(prompt, concept)
        ]
        names = [key_of(key, claim.question, claim.value, claim.part, self.claims.name) for key, claim in claims]
        missing = set(self.cache.missing("answers", names))
        new = {name: claim for name, claim in zip(names, claims, strict=True) if name in missing}
        if new:
            answers = self.claims.confirmed([(self.cache.picture(key), claim) for key, claim in new.values()])
            self.cache.put("answers", {n: str(int(answer)).encode() for n, answer in zip(new, answers, strict=True)})
        confirmed: dict[str, list[int]] = {key: [] for key in keys}
        for name, (key, _) in zip(names, claims, strict=True):
            confirmed[key].append(self.cache.answer(name))
        return [float(np.mean(confirmed[key])) for key in keys]
