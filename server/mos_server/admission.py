"""Admit an upload or refuse it, with every reason.

Nothing in an upload is trusted before it is checked. The checks are the file's format
(`mos_common.concept_file`), its fit to the round's base, and bounds on how much it changes any
layer, so that no upload can drown the others.
"""

from __future__ import annotations

from mos_common.base_model import Base
from mos_common.concept import Concept, check_fits
from mos_common.concept_file import concept_from_bytes
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.layers import Layer
from mos_common.names import is_ordinary_text

# Tuned concepts change a layer by a few percent of its norm; a change as large as the layer itself
# redraws every picture.
MOST_RELATIVE_CHANGE = 1.0
# Tuning stops words at 1.4 times the median norm. Other tools let them grow, but a word of ten
# times that norm drowns its prompt.
MOST_RELATIVE_WORD = 10.0


def admit(data: bytes, base: Base) -> Concept:
    """Return the concept in an upload if it may be fused on `base`.

    Raises:
        ConceptError: the concept may not be fused; the message gives every reason.

    """
    concept = check_fits(concept_from_bytes(data), base)
    layers = base.layout.by_name
    reasons = [reason for name, pair in concept.pairs.items() if (reason := _too_large(layers[name], pair))]
    reasons += _long_words(concept, base)
    # Class word and trigger become part of prompts: a name in <> there would be another concept.
    if not concept.class_word.strip() or not is_ordinary_text(concept.class_word):
        reasons.append(f"its class word is {concept.class_word!r}; expected a word such as 'cat'")
    if not is_ordinary_text(concept.trigger):
        reasons.append(f"its trigger is {concept.trigger!r}; expected ordinary words")
    if not concept.pairs and not concept.words:
        reasons.append("it is empty: it has neither words nor changes")
    if reasons:
        raise ConceptError(f"concept {concept.name} is not admitted: " + "; ".join(reasons[:8]))
    return concept


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
