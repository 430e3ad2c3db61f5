"""Everything that measuring needs, in one place: tune, fuse, draw and score, each thing once.

A score of a concept is a matrix, one row a prompt, one column a seed. Seeds are 0, 1, … for every prompt, concept and model, as in the
paper's evaluation: whatever differs between two methods is not the noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.cache import Cache, drawn_on, key_of, vector_bytes
from mos_bench.identity.concepts import BenchConcept, in_fusion_order, split
from mos_bench.identity.drawings import Request, draw_all
from mos_bench.identity.gallery import Gallery, gallery_of
from mos_bench.identity.methods import Method
from mos_bench.identity.models import Kitchen, Model, Recipe, untouched
from mos_bench.identity.protocol import Prompt, prompts_for
from mos_bench.identity.scorers import Clip, Scorer, all_pairs, clip_text_alignment, scored_by
from mos_bench.identity.sharing import Sharing
from mos_bench.identity.tuning import Studio, Variant
from mos_bench.identity.witness import Witnesses, claims_of, part_of
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import find_pictures
from mos_common.base_model import Base
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_common.prompts import UNRELATED
from mos_common.shell import say
from mos_tiny.recipe.demonstration import CONTEXTS
from mos_tiny.recipe.world import SCENES

Matrix = Float[np.ndarray, "prompts seeds"]


@dataclass(frozen=True)
class Protocol:
    """How much is measured: prompts of each kind, seeds, and concepts that are scored at each n (0: all that are fused)."""

    prompts: int = 1
    seeds: int = 1
    probed: int = 8
    how: Drawing = field(default_factory=Drawing)


@dataclass(frozen=True)
class Scores:
    """One concept under one model. `drawings` are their keys, prompt after prompt."""

    image: Matrix
    right: Matrix
    text: Matrix
    diversity: float
    drawings: tuple[str, ...] = ()


@dataclass
class Workshop:
    """The tools. `concepts` are all that a drawing may be taken for, `clip` is None on the tiny world."""

    base: Base
    protocol: Protocol
    concepts: Sequence[BenchConcept]
    cache: Cache
    sharing: Sharing
    studio: Studio
    kitchen: Kitchen
    scorer: Scorer
    witnesses: Witnesses
    clip: Clip | None = None
    tiny: bool = True
    _gallery: Gallery | None = None

    @classmethod
    def on(
        cls,
        base: Base,
        out: Path,
        protocol: Protocol,
        *,
        scorer: Scorer,
        concepts: Sequence[BenchConcept],
        tiny: bool = True,
        tuned: Path | None = None,
        steps: int | None = None,
        clip: Clip | None = None,
        helper: bool = False,
    ) -> Workshop:
        """A workshop whose things lie in `out`; `tiny` says that the concepts are of the tiny world and are asked for in its words."""
        # What another device or number format draws is not the same: it is kept apart.
        exact = base.device.type == "cpu" and base.dtype == torch.float32
        kind = "" if exact else f"-{base.device.type}-{str(base.dtype).removeprefix('torch.')}"
        folder = out / (base.fingerprint[:12] + kind)
        return cls(
            base,
            protocol,
            concepts,
            Cache(folder / "cache.sqlite"),
            Sharing(folder / "locks", helper=helper),
            Studio(base, folder, tuned=tuned or folder / "tuned", steps=steps),
            Kitchen(base, folder),
            scorer,
            Witnesses(base, folder),
            clip,
            tiny,
        )

    @property
    def gallery(self) -> Gallery:
        """Of all concepts; looked at when it is first needed."""
        if self._gallery is None:
            self._gallery = gallery_of(self.base, self.studio, self.concepts, self.scorer, self.cache)
        return self._gallery

    def half(self, which: str) -> list[BenchConcept]:
        """`dev` or `test`, in the order in which they are fused."""
        return in_fusion_order(split(self.concepts)["dev" if which == "dev" else "test"])

    def counts_in(self, which: str, counts: Sequence[int]) -> list[int]:
        """Those of `counts` for which a half has concepts enough; the others are named.

        Raises:
            RequestError: none of them.

        """
        there = len(self.half(which))
        fitting = [n for n in counts if n <= there]
        if not fitting:
            raise RequestError(
                f"--n {', '.join(map(str, counts))}: {which} has {there} concepts. Ask for at most so many"
            )
        if (beyond := [n for n in counts if n > there]) and not self.sharing.helper:
            say(f"n = {', '.join(map(str, beyond))} left out: {which} has {there} concepts")
        return fitting

    def probed(self, concepts: Sequence[BenchConcept]) -> list[BenchConcept]:
        """Who of the fused ones is scored: the first, so that every n shares them."""
        return list(concepts[: self.protocol.probed or len(concepts)])

    def recipe(self, concepts: Sequence[BenchConcept], variant: Variant, method: Method, scale: float = 1.0) -> Recipe:
        """The fused model of some concepts."""
        tuned = tuple(self.studio.concept(concept, variant) for concept in concepts)
        return Recipe(tuned, method.settings, scale)

    def fuse_all(self, recipes: Sequence[Recipe], what: str) -> None:
        """Return when all are fused. Concepts are recorded by themselves first: that is the work that processes can share."""
        gradient = [recipe for recipe in recipes if recipe.settings.method == "gradient"]
        alone = {
            (one := Recipe((concept,), recipe.settings)).name(self.base): one
            for recipe in gradient
            if not self.kitchen.made(recipe)
            for concept in recipe.concepts
        }
        for title, wanted in ((f"{what}: recording", list(alone.values())), (what, list(recipes))):
            self.sharing.all_of(
                title,
                wanted,
                key=lambda recipe: recipe.name(self.base),
                done=self.kitchen.made,
                do=self.kitchen.make,
            )

    def requests(self, model: Model, concept: BenchConcept, *, of_class: bool = False) -> list[Request]:
        """Drawings of a concept (or of its class word): all prompts, each with all seeds."""
        found = []
        for prompt in self._prompts(concept):
            word = concept.class_word
            text = prompt.about_class(word) if of_class else prompt.about(concept.name, class_word=word)
            how = self._how(prompt)
            found += [Request(model, text, seed, how, base=drawn_on(self.base)) for seed in range(self.protocol.seeds)]
        return found

    def unrelated(self, model: Model) -> list[Request]:
        """Drawings of ordinary prompts that fusion did not record."""
        seeds, how = range(self.protocol.seeds), self.protocol.how
        return [Request(model, p, seed, how, base=drawn_on(self.base)) for p in UNRELATED for seed in seeds]

    def draw(self, requests: Sequence[Request], what: str) -> None:
        """Return when all are drawn."""
        draw_all(self.base, self.cache, self.sharing, requests, what)

    def scores(self, model: Model, concept: BenchConcept, *, of_class: bool = False) -> Scores:
        """What its drawings, which are there, are worth."""
        requests, prompts, seeds = (
            self.requests(model, concept, of_class=of_class),
            self._prompts(concept),
            self.protocol.seeds,
        )
        keys = [request.key for request in requests]
        features = self.features(keys, self._sides(concept))
        shape = (len(prompts), seeds)
        who = self.gallery.recogniser.who(features)
        alike = features.reshape(*shape, -1)
        pairs = list(combinations(range(seeds), 2))
        diversity = [1 - float((alike[:, i] * alike[:, j]).sum(dim=1).mean()) for i, j in pairs]
        return Scores(
            image=all_pairs(features, self.gallery.references[concept.name]).numpy().astype(float).reshape(shape),
            right=np.array([name == concept.name for name in who], float).reshape(shape),
            text=np.array(self._text(keys, prompts, concept)).reshape(shape),
            diversity=float(np.mean(diversity)) if pairs else float("nan"),
            drawings=tuple(keys),
        )

    def image_alignment(self, pairs: Sequence[tuple[Model, BenchConcept]]) -> float:
        """The mean over concepts, each under its model, of image alignment alone; the drawings are there."""
        found = []
        for model, concept in pairs:
            keys = [request.key for request in self.requests(model, concept)]
            features = self.features(keys, self._sides(concept))
            found.append(float(all_pairs(features, self.gallery.references[concept.name]).mean()))
        return float(np.mean(found))

    def choice_file(self, pairs: Sequence[tuple[Model, BenchConcept]]) -> Path:
        """Where a choice by `image_alignment` is written down: by all drawings and what they are compared with."""
        drawings = [[request.key for request in self.requests(*pair)] for pair in pairs]
        key = key_of(drawings, [self.studio.digest(concept) for _, concept in pairs], scored_by(self.scorer))
        return self.kitchen.folder / "choices" / f"{key}.json"

    def text_ceiling(self, concept: BenchConcept) -> float:
        """The share of true claims that are confirmed of the concept's real pictures: its class, and where it is. NaN for CLIP."""
        if self.clip is not None or not concept.views:
            return float("nan")
        name = key_of("real", self.studio.digest(concept), self.witnesses.name)
        if self.cache.missing("seen", [name]):
            real = load_pictures(find_pictures(self.studio.pictures(concept)), self.base.picture_size)
            rebuilt = self.base.decode_latents(self.base.encode_pictures(real))
            asked = []
            for context, picture in zip(CONTEXTS, rebuilt, strict=True):
                where = SCENES.get(context, f"on a {context} background")
                asked += [(picture, claim) for claim in claims_of(Prompt("context", "V", where), concept)]
            self.cache.put("seen", {name: json.dumps(float(np.mean(self.witnesses.confirmed(asked)))).encode()})
        return float(self.cache.answer(name))

    def drift(self, model: Model) -> Matrix:
        """1 - cos of the features of ordinary prompts drawn by a model and by the untouched base from the same noise."""
        ours, bases = (
            self.features([request.key for request in self.unrelated(which)]) for which in (model, untouched())
        )
        return (1 - (ours * bases).sum(dim=1)).clamp(min=0).numpy().astype(float).reshape(len(UNRELATED), -1)

    def features(self, keys: Sequence[str], sides: Sequence[str] = ()) -> Float[Tensor, "n features"]:
        """Features of drawings or their halves, from the cache or now."""
        sides = sides or [""] * len(keys)
        names = [key_of(key, side, scored_by(self.scorer)) for key, side in zip(keys, sides, strict=True)]
        missing = set(self.cache.missing("features", names))
        new = {name: (key, side) for name, key, side in zip(names, keys, sides, strict=True) if name in missing}
        by_shape: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for name, (key, side) in new.items():
            part = part_of(self.cache.picture(key), side)  # type: ignore[arg-type]
            by_shape.setdefault(tuple(part.shape), {})[name] = part
        for parts in by_shape.values():
            found = self.scorer.features(torch.stack(list(parts.values())))
            self.cache.put("features", {n: vector_bytes(v) for n, v in zip(parts, found, strict=True)})
        return torch.nn.functional.normalize(torch.stack([self.cache.vector(name) for name in names]), dim=1)

    def _text(self, keys: Sequence[str], prompts: Sequence[Prompt], concept: BenchConcept) -> list[float]:
        seeds = self.protocol.seeds
        if self.clip is not None:
            prefixed = [prompt.about_class(concept.class_word) for prompt in prompts for _ in range(seeds)]
            pictures = torch.stack([self.cache.picture(key) for key in keys])
            found: list[float] = clip_text_alignment(
                self.clip.features(pictures), self.clip.text_features(prefixed)
            ).tolist()
            return found
        claims = [
            (key, claim)
            for key, prompt in zip(keys, np.repeat(np.array(prompts, object), seeds), strict=True)
            for claim in claims_of(prompt, concept)
        ]
        names = [key_of(key, claim.what, claim.value, claim.part, self.witnesses.name) for key, claim in claims]
        missing = set(self.cache.missing("seen", names))
        new = {name: asked for name, asked in zip(names, claims, strict=True) if name in missing}
        if new:
            answers = self.witnesses.confirmed([(self.cache.picture(key), claim) for key, claim in new.values()])
            self.cache.put("seen", {n: str(int(answer)).encode() for n, answer in zip(new, answers, strict=True)})
        seen: dict[str, list[int]] = {key: [] for key in keys}
        for name, (key, _) in zip(names, claims, strict=True):
            seen[key].append(self.cache.answer(name))
        return [float(np.mean(seen[key])) for key in keys]

    def _prompts(self, concept: BenchConcept) -> list[Prompt]:
        return prompts_for(concept, each=self.protocol.prompts, tiny=self.tiny)

    def _sides(self, concept: BenchConcept) -> list[str]:
        return [prompt.side for prompt in self._prompts(concept) for _ in range(self.protocol.seeds)]

    def _how(self, prompt: Prompt) -> Drawing:
        wide = self.tiny and prompt.kind == "interaction"
        return replace(self.protocol.how, width=2 * self.base.picture_size) if wide else self.protocol.how
