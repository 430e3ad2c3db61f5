"""The tools of a measurement, opened on one folder: tune, fuse, draw and score, each thing once.

Seeds are 0, 1, … for every prompt, concept and model, as in the paper's evaluation, so two methods
never differ in their noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mos_bench.identity.concepts.bench_concepts import BenchConcept, in_fusion_order, split
from mos_bench.identity.concepts.tuning import TunedConcepts, Variant
from mos_bench.identity.drawing.models import FusedModels, FusionSpec, Model, untouched, with_own
from mos_bench.identity.drawing.protocol import ConceptDrawings, Protocol
from mos_bench.identity.measuring.methods import Method
from mos_bench.identity.scoring.claims import ClaimChecker
from mos_bench.identity.scoring.scorers import Clip, Scorer
from mos_bench.identity.scoring.scores import Scoring
from mos_bench.identity.storage.cache import Cache
from mos_bench.identity.storage.sharing import Sharing
from mos_common.base_model import Base
from mos_common.errors import RequestError
from mos_common.shell import say


@dataclass
class Bench:
    """Tuned concepts, fused models, drawings and scores of one base."""

    base: Base
    protocol: Protocol
    concepts: Sequence[BenchConcept]
    cache: Cache
    sharing: Sharing
    tuned: TunedConcepts
    fused: FusedModels
    drawings: ConceptDrawings
    scoring: Scoring

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
    ) -> Bench:
        """Return a bench that keeps everything in `out`.

        With `tiny`, the concepts are of the tiny world and the prompts use its words.
        """
        # Another device or number format draws something else, so its results are kept apart.
        exact = base.device.type == "cpu" and base.dtype == torch.float32
        kind = "" if exact else f"-{base.device.type}-{str(base.dtype).removeprefix('torch.')}"
        folder = out / (base.fingerprint[:12] + kind)
        cache, sharing = Cache(folder / "cache.sqlite"), Sharing(folder / "locks", helper=helper)
        tuned_concepts = TunedConcepts(base, folder, tuned=tuned or folder / "tuned", steps=steps)
        drawings = ConceptDrawings(base, protocol, cache, sharing, tiny)
        scoring = Scoring(drawings, concepts, tuned_concepts, scorer, ClaimChecker(base, folder), folder, clip)
        fused = FusedModels(base, folder)
        return cls(base, protocol, concepts, cache, sharing, tuned_concepts, fused, drawings, scoring)

    def half(self, which: str) -> list[BenchConcept]:
        """Return `dev` or `test`, in the order in which the concepts are fused."""
        return in_fusion_order(split(self.concepts)["dev" if which == "dev" else "test"])

    def counts_in(self, which: str, counts: Sequence[int]) -> list[int]:
        """Return those of `counts` for which a half has enough concepts, and print the others.

        Raises:
            RequestError: no count fits.

        """
        available = len(self.half(which))
        fitting = [n for n in counts if n <= available]
        if not fitting:
            raise RequestError(
                f"--n {', '.join(map(str, counts))}: {which} has {available} concepts; use at most {available}"
            )
        if (beyond := [n for n in counts if n > available]) and not self.sharing.helper:
            say(f"n = {', '.join(map(str, beyond))} left out: {which} has {available} concepts")
        return fitting

    def probed(self, concepts: Sequence[BenchConcept]) -> list[BenchConcept]:
        """Return the concepts that are scored: the first ones, so that every n shares them."""
        return list(concepts[: self.protocol.probed or len(concepts)])

    def spec(
        self, concepts: Sequence[BenchConcept], variant: Variant, method: Method, scale: float = 1.0
    ) -> FusionSpec:
        """Return the specification of the model that fuses `concepts`."""
        tuned = tuple(self.tuned.concept(concept, variant) for concept in concepts)
        return FusionSpec(tuned, method.settings, scale)

    def models_of(
        self, concepts: Sequence[BenchConcept], variant: Variant, method: Method, scale: float = 1.0
    ) -> tuple[Model, dict[str, Model]]:
        """Fuse; return what draws ordinary prompts, and by name what draws each probed concept.

        Beside own changes the base draws what names no concept.
        """
        self.fuse_all([spec := self.spec(concepts, variant, method, scale)], f"{method.name} of {len(concepts)}")
        fused, probed = self.fused.model(spec), self.probed(concepts)
        if not method.own:
            return fused, {concept.name: fused for concept in probed}
        tuned = {concept.name: self.tuned.concept(concept, variant) for concept in probed}
        return untouched(), {name: with_own(self.base, fused, concept) for name, concept in tuned.items()}

    def fuse_all(self, specs: Sequence[FusionSpec], what: str) -> None:
        """Return when all models are fused.

        Each concept is recorded on its own first, since processes can share that work.
        """
        gradient = [spec for spec in specs if spec.settings.method == "gradient"]
        single = {
            (alone := FusionSpec((concept,), spec.settings)).name(self.base): alone
            for spec in gradient
            if not self.fused.has(spec)
            for concept in spec.concepts
        }
        for title, wanted in ((f"{what}: recording", list(single.values())), (what, list(specs))):
            self.sharing.all_of(
                title,
                wanted,
                key=lambda spec: spec.name(self.base),
                done=self.fused.has,
                do=self.fused.make,
            )
