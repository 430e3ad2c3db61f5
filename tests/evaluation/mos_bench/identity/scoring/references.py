"""References: the held-back pictures of every concept, and the recogniser of all concepts.

Image alignment compares with held-back pictures. Identity accuracy asks which concept a drawing
resembles most: the recogniser is a classifier by the nearest whitened mean. It learns from the
pictures used for tuning, passed through the VAE as all drawings are. The ceiling applies the same
rule to held-back pictures through the VAE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.concepts.tuning import TunedConcepts
from mos_bench.identity.scoring.scorers import Scorer, all_pairs, scored_by
from mos_bench.identity.storage.cache import Cache, key_of, vector_bytes
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import split_pictures
from mos_common.base_model import Base
from mos_tiny.recipe.witnesses.classifier import Classifier, nearest_whitened_mean

Features = Float[Tensor, "n features"]


@dataclass(frozen=True)
class Ceiling:
    """Scores of real pictures through the VAE.

    `image` is the alignment of pictures tuned on, `accuracy` that of held-back ones.
    """

    image: float
    accuracy: float


@dataclass(frozen=True)
class References:
    """Features of held-back pictures, the recogniser of all concepts, and their ceilings."""

    held_back: dict[str, Features]
    recogniser: Classifier
    ceilings: dict[str, Ceiling]


def references_of(
    base: Base, tuned_concepts: TunedConcepts, concepts: Sequence[BenchConcept], scorer: Scorer, cache: Cache
) -> References:
    """Compute references; features are computed once per concept, base and scorer."""
    tuned_on, references, held = {}, {}, {}
    for concept in concepts:
        tuned, rebuilt, real = _features(base, tuned_concepts, concept, scorer, cache)
        tuned_on[concept.name], held[concept.name], references[concept.name] = tuned, rebuilt, real
    labels = [name for name, features in tuned_on.items() for _ in features]
    recogniser = nearest_whitened_mean(torch.cat(list(tuned_on.values())), labels)
    ceilings = {
        name: Ceiling(
            image=float(all_pairs(tuned_on[name], references[name]).mean()),
            accuracy=recogniser.classify(held[name]).count(name) / len(held[name]),
        )
        for name in references
    }
    return References(references, recogniser, ceilings)


def _features(
    base: Base, tuned_concepts: TunedConcepts, concept: BenchConcept, scorer: Scorer, cache: Cache
) -> tuple[Features, Features, Features]:
    """Return features of pictures tuned on (VAE), held back (VAE), and held back as they are."""
    tuned_on, held_back = split_pictures(tuned_concepts.pictures(concept))
    count, held = len(tuned_on), len(held_back)
    keys = [
        key_of("picture", base.fingerprint, tuned_concepts.digest(concept), scored_by(scorer), i)
        for i in range(count + 2 * held)
    ]
    if cache.missing("features", keys):
        real = load_pictures([*tuned_on, *held_back], base.picture_size)
        rebuilt = base.decode_latents(base.encode_pictures(real))
        vectors = scorer.features(torch.cat([rebuilt, real[count:]]))
        cache.put("features", {key: vector_bytes(vector) for key, vector in zip(keys, vectors, strict=True)})
    features = torch.stack([cache.vector(key) for key in keys])
    return features[:count], features[count : count + held], features[count + held :]
