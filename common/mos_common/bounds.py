"""Bounds on the size of a concept's changes, which rounds enforce and imports announce.

No concept may drown the others. Import says at once what a round would refuse later.
"""

from __future__ import annotations

from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.layers import Layer

# Tuned concepts change a layer by a few percent of its norm; a change as large as the layer itself
# redraws every picture.
MOST_RELATIVE_CHANGE = 1.0
# Tuning stops words at 1.4 times the median norm. Other tools let them grow, but a word of ten
# times that norm drowns its prompt.
MOST_RELATIVE_WORD = 10.0


def beyond_bounds(concept: Concept, base: Base) -> list[str]:
    """Return what a round would not admit of a concept that fits the base; empty if nothing."""
    layers = base.layout.by_name
    too_large = (_too_large(layers[name], pair) for name, pair in concept.pairs.items())
    return [*filter(None, too_large), *_long_words(concept, base)]


def relative_change(layer: Layer, pair: LowRank) -> float:
    """Return ‖ΔW‖ / ‖W‖."""
    return _norm(pair) / float(layer.module.weight.float().norm())


def _too_large(layer: Layer, pair: LowRank) -> str | None:
    change = _norm(pair)
    most = MOST_RELATIVE_CHANGE * float(layer.module.weight.float().norm())
    return f"{layer.name} is changed by norm {change:.3g}, at most {most:.3g} is admitted" if change > most else None


def _norm(pair: LowRank) -> float:
    """Return ‖s·B·A‖ without forming the product: ‖BA‖² = ⟨BᵀB, AAᵀ⟩."""
    A, B = pair.A.double(), pair.B.double()
    return abs(pair.scale) * float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt())


def _long_words(concept: Concept, base: Base) -> list[str]:
    reasons = []
    for words, table in zip(concept.words, base.token_tables, strict=True) if concept.words else ():
        most = MOST_RELATIVE_WORD * float(table.float().norm(dim=1).median())
        if (longest := float(words.float().norm(dim=-1).max())) > most:
            reasons.append(f"a word has norm {longest:.3g}, at most {most:.3g} is admitted")
    return reasons
