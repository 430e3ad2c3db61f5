"""Compare the concepts of one fusion before anything is recorded: near-copies, and loud changes.

Two concepts are copies if their changes point the same way, whatever their factors, alphas, number
formats and signs are:

    cos² = ⟨ΔW1, ΔW2⟩² / (‖ΔW1‖² ‖ΔW2‖²),   ⟨ΔW1, ΔW2⟩ = Σ s1 s2 ⟨B1ᵀB2, A1A2ᵀ⟩ / ‖W‖²

summed over the layers that both change. Nothing of a layer's size is formed, and a rotation of the
pair (RA, BR⁻¹) changes nothing. Where neither changes any layer, their words decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.bounds import relative_change
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_common.layers import Layer

# Measured on `tiny` (docs/security.md): one person tuned twice from other noise has a cosine of
# 0.05, with 60 steps in place of 40 one of 0.97. Other people have at most 0.81.
SAME_CHANGES = 0.99
# One person's words alone, tuned twice from other noise, have a cosine of 0.95.
SAME_WORDS = 0.999
# Layers that both change count if they hold this share of the later concept's changes.
SHARED = 0.5
# A change up to this share of its layer's norm is never too loud: the largest of ours is 0.18.
ORDINARY_CHANGE = 0.2
LOUDEST = 5.0  # times the median of the others
FEWEST_OTHERS = 2  # whose median says something


def unfit_together(concepts: Sequence[NamedConcept], base: Base) -> dict[str, str]:
    """Return, by token, why a concept is not fused with the others; copies first.

    `concepts` are in the order of their arrival: of copies the earliest stays.
    """
    copies = near_copies(concepts, base)
    return copies | too_loud_together([named for named in concepts if named.token not in copies], base)


def too_loud_together(concepts: Sequence[NamedConcept], base: Base) -> dict[str, str]:
    """Return, by token, which concepts are too loud; again, since the rest has another median."""
    reasons: dict[str, str] = {}
    while loud := too_loud([named for named in concepts if named.token not in reasons], base):
        reasons |= loud
    return reasons


def near_copies(concepts: Sequence[NamedConcept], base: Base) -> dict[str, str]:
    """Return, by token, of which earlier concept a concept is a copy."""
    changes = _cosines_of_changes([named.concept for named in concepts], base)
    reasons: dict[str, str] = {}
    for later, named in enumerate(concepts):
        for earlier, other in enumerate(concepts[:later]):
            what, cosine, least = "changes", float(changes[earlier, later]), SAME_CHANGES
            if not named.concept.pairs and not other.concept.pairs:
                what, cosine, least = "words", _cosine_of_words(named.concept, other.concept), SAME_WORDS
            if other.token not in reasons and cosine > least:
                reasons[named.token] = (
                    f"its {what} are those of {other.token} (cosine {cosine:.4f}; above {least:g} a concept counts once)"
                )
                break
    return reasons


def too_loud(concepts: Sequence[NamedConcept], base: Base) -> dict[str, str]:
    """Return, by token, which layer a concept changes far more than the others do."""
    reasons: dict[str, str] = {}
    for layer in base.layout.layers:
        changes = {
            named.token: relative_change(layer, pair)
            for named in concepts
            if (pair := named.concept.pairs.get(layer.name)) is not None
        }
        for token, change in changes.items():
            others = torch.tensor([other for name, other in changes.items() if name != token])
            if len(others) < FEWEST_OTHERS:
                continue
            median = float(others.median())  # the lower one of two
            if change > max(LOUDEST * median, ORDINARY_CHANGE):
                reasons.setdefault(
                    token,
                    f"{layer.name} is changed by {change:.2f} of its norm, the others change it by {median:.3f} "
                    f"(median); at most {max(LOUDEST * median, ORDINARY_CHANGE):.2f} is fused with them",
                )
    return reasons


def _cosines_of_changes(concepts: Sequence[Concept], base: Base) -> Float[Tensor, "concepts concepts"]:
    """Return |cos| of the changes of every two concepts, over the layers that both change."""
    count = len(concepts)
    inner, norm, whole = (torch.zeros(count, count, dtype=torch.float64) for _ in range(3))
    for layer in base.layout.layers:
        members = [i for i, concept in enumerate(concepts) if layer.name in concept.pairs]
        if not members:
            continue
        products = _products([concepts[i].pairs[layer.name] for i in members], layer)
        at = torch.tensor(members)
        inner[at[:, None], at] += products
        norm[at[:, None], at] += products.diagonal()[:, None]
        whole[at] += products.diagonal()[:, None]
    shared = norm.T >= SHARED * whole.T
    cosines = inner.abs() / (norm * norm.T).sqrt()
    return torch.where(shared & (norm > 0) & (norm.T > 0), cosines, 0.0)


def _products(pairs: Sequence[LowRank], layer: Layer) -> Float[Tensor, "pairs pairs"]:
    """Return ⟨ΔW1, ΔW2⟩/‖W‖² of every two pairs of one layer."""
    A = torch.cat([pair.A.double() for pair in pairs])
    B = torch.cat([pair.scale * pair.B.double() for pair in pairs], dim=1)
    starts = torch.tensor([0, *(pair.rank for pair in pairs)]).cumsum(0)
    whose = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor([pair.rank for pair in pairs]))
    products = A.new_zeros(len(pairs), len(pairs))
    for i, pair in enumerate(pairs):
        mine = slice(int(starts[i]), int(starts[i]) + pair.rank)
        elements = ((B[:, mine].T @ B) * (A[mine] @ A.T)).sum(dim=0)
        products[i].index_add_(0, whose, elements)
    return products / float(layer.module.weight.double().norm()) ** 2


def _cosine_of_words(one: Concept, other: Concept) -> float:
    if [words.shape for words in one.words] != [words.shape for words in other.words] or not one.words:
        return 0.0
    a, b = (torch.cat([words.double().flatten() for words in concept.words]) for concept in (one, other))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))
