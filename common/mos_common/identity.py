"""How well a concept is drawn: image alignment with pictures that were held back from tuning.

Four numbers on one scale. The floor is the score of the untouched base, prompted with the class
word. `single` is the concept on its own, `fused` the same concept in a fused model, with the same
prompts and seeds. The ceiling is the score of real pictures of the concept: those it was tuned on,
encoded and decoded by the VAE, compared with those held back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import Concept, words_of
from mos_common.concept_file import content_digest
from mos_common.drawing import Drawing, draw
from mos_common.edlora import LowRank, attached
from mos_common.fused_model import FusedModel
from mos_common.identity_scores import Identity
from mos_common.prompt_grammar import as_text
from mos_common.prompt_names import resolve
from mos_common.prompts import SCORED, about
from mos_common.scores import ImageScorer, image_alignment
from mos_common.words import Vocabulary

DRAWINGS_PER_CONTEXT = 1
STEPS = 20


@dataclass(frozen=True)
class IdentityProbe:
    """The means to measure one concept: features of held-back pictures, and seeds."""

    base: Base
    scorer: ImageScorer
    references: Float[Tensor, "n features"]
    seeds: Sequence[int]
    steps: int

    def score(self, subject: str, changes: Mapping[str, LowRank], vocabulary: Vocabulary) -> float:
        """Return the image alignment of drawings of `subject` with `changes` attached."""
        return image_alignment(self.scorer.features(self.drawings(subject, changes, vocabulary)), self.references)

    def drawings(
        self, subject: str, changes: Mapping[str, LowRank], vocabulary: Vocabulary
    ) -> Float[Tensor, "n 3 h w"]:
        """Draw `subject` once in each scored context."""
        prompts = [about(context, as_text(subject)) for context in SCORED] * DRAWINGS_PER_CONTEXT
        with attached(self.base, changes):
            return draw(self.base, prompts, self.seeds, vocabulary=vocabulary, how=Drawing(steps=self.steps))


def probe_for(
    base: Base,
    concept: Concept,
    held_back: Float[Tensor, "n 3 h w"],
    scorer: ImageScorer,
    *,
    steps: int = STEPS,
) -> IdentityProbe:
    """Return the probe of a concept; its seeds come from the content digest."""
    first = int(content_digest(concept)[:8], 16)
    count = len(SCORED) * DRAWINGS_PER_CONTEXT
    return IdentityProbe(base, scorer, scorer.features(held_back), [first + i for i in range(count)], steps)


def measure_identity(
    base: Base,
    concept: Concept,
    tuned_on: Float[Tensor, "m 3 h w"],
    held_back: Float[Tensor, "n 3 h w"],
    *,
    fused: FusedModel,
    fused_token: str,
    steps: int = STEPS,
) -> Identity:
    """Measure the four numbers of one concept, with `steps` denoising steps per drawing.

    `fused_token` is the concept's token in the fused model.
    """
    probe = probe_for(base, concept, held_back, ImageScorer(str(base.device)), steps=steps)
    return Identity(
        class_word=score_class_word(probe, concept),
        single=score_single(probe, concept),
        fused=score_in(probe, fused, fused_token),
        ceiling=score_ceiling(probe, tuned_on),
    )


def score_class_word(probe: IdentityProbe, concept: Concept) -> float:
    """Return how well the untouched base draws the concept when asked for its class word."""
    return probe.score(f"a {concept.class_word}", {}, {})


def score_single(probe: IdentityProbe, concept: Concept) -> float:
    """Return how well the concept is drawn when only it is attached."""
    return probe.score(concept.name, concept.pairs, {concept.name: words_of(concept, probe.base)})


def score_in(probe: IdentityProbe, fused: FusedModel, token: str) -> float:
    """Return how well a fused model draws the probe's concept, which it calls `token`."""
    return probe.score(resolve(token, fused.vocabulary), fused.changes, fused.vocabulary)


def score_ceiling(probe: IdentityProbe, pictures: Float[Tensor, "m 3 h w"]) -> float:
    """Return the score of other real pictures of the concept, encoded and decoded by the VAE."""
    rebuilt = probe.base.decode_latents(probe.base.encode_pictures(pictures))
    return image_alignment(probe.scorer.features(rebuilt), probe.references)
