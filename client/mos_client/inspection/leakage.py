"""Run a membership-inference attack on one's own concept file, before others do.

The attacker has the file, the base, and a picture that may have been tuned on, and measures how
much better the concept predicts its noise than the base does: pictures tuned on gain more.
Subtracting the base's loss removes how hard a picture is anyway (difficulty calibration, Watson et
al., arXiv 2111.08440). The score is the probability that a picture tuned on gains more than one
held back (the area under the ROC curve): 0.5 is guessing, 1 is certainty.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mos_client.pictures.examples import load_examples
from mos_client.pictures.folder import Picture, find_pictures, split_pictures
from mos_client.tuning.loss import noise_loss, spread_times
from mos_common.attention import conditioned
from mos_common.base_model import Base
from mos_common.concept import Concept, check_fits, words_of
from mos_common.conditioning import read_prompts
from mos_common.edlora import LowRank, attached
from mos_common.prompts import about
from mos_common.words import Vocabulary

log = logging.getLogger(__name__)
NOISES, AT_ONCE = 16, 4
PROMPT = "photo of a V"
MOST_ORDERS = 200_000
TELLS, MAY_TELL = 0.8, 0.65
CHANCE = 0.05


@dataclass(frozen=True)
class Leakage:
    """The gain of each picture: how much better the concept predicts its noise than the base."""

    tuned_on: dict[str, float]
    never_seen: dict[str, float]

    @property
    def auc(self) -> float:
        """The probability that a picture tuned on gains more than another; ties count half."""
        return auc(list(self.tuned_on.values()), list(self.never_seen.values()))

    @property
    def p_value(self) -> float:
        """The probability of a score at least this high if tuning made no difference."""
        return p_value(list(self.tuned_on.values()), list(self.never_seen.values()))

    def lines(self) -> Iterator[str]:
        """Yield the report, in plain words."""
        yield "how much better the concept predicts the noise in each picture than the base does:"
        for label, gains in (("tuned on", self.tuned_on), ("never seen", self.never_seen)):
            yield from (f"  {label:>10}  {name}  {gain:+.4f}" for name, gain in gains.items())
        yield f"membership score {self.auc:.2f} (0.5 is guessing, 1 is certainty), p = {self.p_value:.3f}"
        counts = f"{len(self.tuned_on)} and {len(self.never_seen)} pictures"
        if 1 / comb(len(self.tuned_on) + len(self.never_seen), len(self.tuned_on)) > CHANCE:
            yield (
                f"{counts} are too few to show anything, whatever the score: "
                "give more pictures that it was not tuned on, with --others."
            )
        elif self.p_value > CHANCE:
            yield f"With {counts} this could be chance: it shows neither that the file leaks nor that it does not."
        elif self.auc >= TELLS:
            yield (
                "Somebody who has the file and one of your pictures can tell that it was tuned on. "
                "Fewer steps or a lower rank make that harder."
            )
        elif self.auc >= MAY_TELL:
            yield "Somebody who has the file and one of your pictures can often tell that it was tuned on."
        else:
            yield "This attack is hardly better than guessing at which pictures were tuned on."
        yield (
            "It proves nothing about other attacks, and it is not about likeness: "
            "the file is made to draw what the pictures show, "
            "and identities can be reconstructed from such weights (arXiv 2409.08482). "
            "Share it only with people who may draw it."
        )


def measure_leakage(base: Base, concept: Concept, images: Path, others: Path | None = None) -> Leakage:
    """Attack a concept with the pictures it was tuned on, and with others it has never seen.

    Those are the pictures held back, and those of the folder `others` if given.

    Raises:
        PicturesError: a folder cannot be used.
        ConceptError: the concept does not fit the base.

    """
    check_fits(concept, base)
    tuned_on, held_back = split_pictures(images, None)
    never_seen = _by_name(held_back, images)
    if others is not None:
        more = _by_name(_other_pictures(others, images), others)
        never_seen |= {f"{others.name}/{name}": picture for name, picture in more.items()}
    words = {concept.name: words_of(concept, base)}
    gains = [
        dict(zip(named, _gains(base, concept, words, list(named.values())), strict=True))
        for named in (_by_name(tuned_on, images), never_seen)
    ]
    return Leakage(*gains)


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """Return P(member > other) + P(member = other) / 2 over all pairs."""
    return sum((m > o) + (m == o) / 2 for m in members for o in others) / (len(members) * len(others))


def p_value(members: Sequence[float], others: Sequence[float]) -> float:
    """Return the p-value of the exact permutation test of Mann and Whitney's rank sum.

    It is the share of all choices of as many members whose rank sum is at least as high. Beyond
    `MOST_ORDERS` choices, it is the share among random ones from a fixed seed.
    """
    everything, count = [*members, *others], len(members)
    ranks = [sum((x > y) + (x == y) / 2 for y in everything) for x in everything]
    if comb(len(everything), count) <= MOST_ORDERS:
        sums: Iterator[float] = map(sum, combinations(ranks, count))
    else:
        generator, drawn = torch.Generator().manual_seed(0), torch.tensor(ranks, dtype=torch.float64)
        sums = (float(drawn[torch.randperm(len(ranks), generator=generator)[:count]].sum()) for _ in range(5000))
    as_high = [total >= sum(ranks[:count]) - 1e-6 for total in sums]
    return sum(as_high) / len(as_high)


def _by_name(pictures: Sequence[Picture], folder: Path) -> dict[str, Picture]:
    return {str(picture.path.relative_to(folder)): picture for picture in pictures}


def _other_pictures(others: Path, images: Path) -> list[Picture]:
    """Return the pictures of `others` that are not, byte for byte, among those of `images`."""
    known = {picture.path.read_bytes() for picture in find_pictures(images, None)}
    candidates = find_pictures(others, None)
    new = [picture for picture in candidates if picture.path.read_bytes() not in known]
    if len(new) < len(candidates):
        log.warning("%d pictures of %s are also in %s: left out", len(candidates) - len(new), others, images)
    return new


def _gains(base: Base, concept: Concept, words: Vocabulary, pictures: Sequence[Picture]) -> list[float]:
    latents = [example.views[0].latent for example in load_examples(base, pictures)]
    usual = _losses(base, latents, about(PROMPT, concept.class_word), {}, {})
    own = _losses(base, latents, about(PROMPT, concept.name), concept.pairs, words)
    return [a - b for a, b in zip(usual, own, strict=True)]


@torch.no_grad()
def _losses(
    base: Base,
    latents: Sequence[Float[Tensor, "c h w"]],
    prompt: str,
    changes: Mapping[str, LowRank],
    words: Vocabulary,
) -> list[float]:
    """Return the noise loss of each picture, over the same times and noises."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(base.scheduler.config, clip_sample=False)
    means = []
    with attached(base, changes), conditioned(base, read_prompts(base, [prompt] * AT_ONCE, words)) as unet:
        for latent in latents:
            generator = torch.Generator().manual_seed(0)
            times = spread_times(NOISES, int(scheduler.config.num_train_timesteps), generator).to(base.device)
            noise = torch.randn((NOISES, *latent.shape), generator=generator).to(base.device, base.dtype)
            repeated = latent.to(base.device, base.dtype).expand_as(noise)
            losses = []
            for start in range(0, NOISES, AT_ONCE):
                part = slice(start, start + AT_ONCE)
                losses.append(float(noise_loss(unet, scheduler, repeated[part], noise[part], times[part])))
            means.append(sum(losses) / len(losses))
    return means
