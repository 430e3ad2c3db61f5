"""The drawings that a protocol asks for: every prompt of a concept with every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.concepts.prompts import Prompt, prompts_for
from mos_bench.identity.drawing.models import Model
from mos_bench.identity.drawing.requests import Request, draw_all
from mos_bench.identity.storage.cache import Cache, drawn_on
from mos_bench.identity.storage.sharing import Sharing
from mos_common.base_model import Base
from mos_common.drawing import Drawing
from mos_common.prompts import UNRELATED


@dataclass(frozen=True)
class Protocol:
    """The amount of measurement: prompts of each kind, seeds, and concepts scored at each n.

    `probed` 0 scores every fused concept.
    """

    prompts: int = 1
    seeds: int = 1
    probed: int = 8
    how: Drawing = field(default_factory=Drawing)

    def changed(
        self,
        *,
        prompts: int | None,
        seeds: int | None,
        probed: int | None,
        steps: int | None,
        how: Drawing | None = None,
    ) -> Protocol:
        """Return the protocol with the values that are given; `steps` are denoising steps."""
        how = how or self.how
        return Protocol(
            prompts=self.prompts if prompts is None else prompts,
            seeds=self.seeds if seeds is None else seeds,
            probed=self.probed if probed is None else probed,
            how=replace(how, steps=how.steps if steps is None else steps),
        )


@dataclass
class ConceptDrawings:
    """Requests for drawings, and the drawings themselves in `cache`."""

    base: Base
    protocol: Protocol
    cache: Cache
    sharing: Sharing
    tiny: bool = True

    def prompts(self, concept: BenchConcept) -> list[Prompt]:
        """Return the prompts about a concept."""
        return prompts_for(concept, each=self.protocol.prompts, tiny=self.tiny)

    def sides(self, concept: BenchConcept) -> list[str]:
        """Return, for each drawing of a concept, the half of the picture that is scored."""
        return [prompt.side for prompt in self.prompts(concept) for _ in range(self.protocol.seeds)]

    def requests(self, model: Model, concept: BenchConcept, *, of_class: bool = False) -> list[Request]:
        """Return a request for every prompt and seed about a concept, or about its class word."""
        requests = []
        for prompt in self.prompts(concept):
            word, how = concept.class_word, self._how(prompt)
            text = prompt.about_class(word) if of_class else prompt.about(concept.name, class_word=word)
            requests += [
                Request(model, text, seed, how, base=drawn_on(self.base)) for seed in range(self.protocol.seeds)
            ]
        return requests

    def unrelated(self, model: Model) -> list[Request]:
        """Return requests for ordinary prompts that fusion did not record."""
        seeds, how = range(self.protocol.seeds), self.protocol.how
        return [Request(model, p, seed, how, base=drawn_on(self.base)) for p in UNRELATED for seed in seeds]

    def draw(self, requests: Sequence[Request], what: str) -> None:
        """Return when every request is in the cache."""
        draw_all(self.base, self.cache, self.sharing, requests, what)

    def _how(self, prompt: Prompt) -> Drawing:
        wide = self.tiny and prompt.kind == "interaction"
        return replace(self.protocol.how, width=2 * self.base.picture_size) if wide else self.protocol.how
