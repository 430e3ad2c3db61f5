"""Text alignment on the tiny world: the share of a prompt's claims that a picture shows.

A prompt claims the class of V, the background, the other subject and the look of V. Text alignment
is the share of claims that witnesses confirm (`mos_tiny.recipe.witnesses.of_prompts`). Their
ceiling is their accuracy on real pictures that they did not learn from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.concepts.bench_concepts import BenchConcept, spare_icons, spare_people
from mos_bench.identity.concepts.prompts import Prompt, Side
from mos_bench.identity.storage.cache import key_of
from mos_common.base_model import Base
from mos_common.digests import digest_of_code
from mos_tiny.recipe.compose import Subject
from mos_tiny.recipe.witnesses.features import Pictures
from mos_tiny.recipe.witnesses.lessons import PERSON, person_of
from mos_tiny.recipe.witnesses.of_prompts import LessonSizes, learn_of_prompts
from mos_tiny.recipe.witnesses.witness import Witness, keep_witnesses, kept_witnesses

# The code of the witnesses: when it changes, they learn and answer again.
WITNESSED_BY = (
    *(f"mos_bench.identity.{name}" for name in ("concepts.bench_concepts", "concepts.prompts", "scoring.claims")),
    *(f"mos_tiny.recipe.witnesses.{name}" for name in ("classifier", "features", "lessons", "of_prompts", "witness")),
    *(f"mos_tiny.recipe.{name}" for name in ("art", "compose", "kept", "pictures", "restyle", "scenes", "sprites")),
    *(f"mos_tiny.recipe.{name}" for name in ("trials", "wider", "world")),
    *("mos_common.base_loading", "mos_common.base_model", "mos_common.scores"),
)
AT_ONCE = 32


@dataclass(frozen=True)
class Claim:
    """One thing that a part of a picture must show; `question` names the witness."""

    question: str
    value: str
    part: Side = ""


def claims_of(prompt: Prompt, concept: BenchConcept) -> list[Claim]:
    """Return what a drawing of the prompt must show; looks of people apply to people only."""
    claims = [Claim("class", PERSON if concept.person else concept.class_word, prompt.side)]
    if prompt.background:
        claims.append(Claim("background" if not prompt.side else "wide background", prompt.background))
    if partner := prompt.partner(concept.class_word):
        claims.append(Claim("class", partner, "right" if prompt.side == "left" else "left"))
    question, value = prompt.look
    if question and (concept.person or question != "style"):
        claims.append(Claim(question, value))
    return claims


def part_of(picture: Float[Tensor, "*n 3 h w"], side: Side) -> Float[Tensor, "*n 3 h part"]:
    """Return a half of a wide picture, or the whole."""
    half = picture.shape[-1] // 2
    return picture if not side else picture[..., :half] if side == "left" else picture[..., -half:]


class ClaimChecker:
    """Checks claims by witnesses that learn at the first question and are kept in `folder`."""

    def __init__(self, base: Base, folder: Path | None = None, sizes: LessonSizes | None = None) -> None:
        self.base, self.sizes = base, sizes or LessonSizes()
        self.name = key_of("witnesses", digest_of_code(WITNESSED_BY), base.fingerprint, asdict(self.sizes))
        self._file = None if folder is None else folder / f"witnesses.{self.name[:16]}.safetensors"
        self._witnesses: Mapping[str, Witness] = {}

    def confirmed(self, claims: Sequence[tuple[Tensor, Claim]]) -> list[bool]:
        """Return for each picture (3 H W) if it shows its claim."""
        groups: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
        parts = [part_of(picture, claim.part) for picture, claim in claims]
        for i, (_, claim) in enumerate(claims):
            groups[claim.question, tuple(parts[i].shape)].append(i)
        shown = [False] * len(claims)
        for (question, _), rows in groups.items():
            answers = self.answer(question, torch.stack([parts[i] for i in rows]))
            for i, answer in zip(rows, answers, strict=True):
                shown[i] = answer == claims[i][1].value
        return shown

    def answer(self, question: str, pictures: Pictures) -> list[str]:
        """Return one witness's answers; a person of any style is called a person."""
        if not self._witnesses:
            self._witnesses = self._kept_or_learnt()
        answers = self._witnesses[question](pictures)
        return [PERSON if answer.startswith(PERSON) else answer for answer in answers]

    def _kept_or_learnt(self) -> Mapping[str, Witness]:
        if self._file is not None and self._file.is_file():
            return kept_witnesses(self._file)
        witnesses = learn_of_prompts(self._rebuilt, self.sizes, _unseen_subjects())
        if self._file is not None:
            keep_witnesses(witnesses, self._file)
        return witnesses

    def _rebuilt(self, pictures: Pictures) -> Pictures:
        """Return pictures through the base's VAE, a few at a time."""
        parts = torch.split(pictures, AT_ONCE)
        return torch.cat([self.base.decode_latents(self.base.encode_pictures(part)) for part in parts])


def _unseen_subjects() -> Iterator[tuple[str, Sequence[Subject]]]:
    """Yield icons and people of unseen styles that are no measured concept, by class."""
    for icon in spare_icons():
        yield icon.label["noun"], [icon]
    for views in spare_people():
        yield person_of(views[0].label["style"]), views
