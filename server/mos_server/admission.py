"""Admit an upload or refuse it, with every reason.

Nothing in an upload is trusted before it is checked. The checks are the file's format
(`mos_common.concept_file`), its fit to the round's base, and bounds on how much it changes any
layer (`mos_common.bounds`), so that no upload can drown the others.
"""

from __future__ import annotations

from mos_common.base_model import Base
from mos_common.bounds import beyond_bounds
from mos_common.concept import Concept, check_fits
from mos_common.concept_file import concept_from_bytes
from mos_common.errors import ConceptError
from mos_common.names import is_ordinary_text


def admit(data: bytes, base: Base) -> Concept:
    """Return the concept in an upload if it may be fused on `base`.

    Raises:
        ConceptError: the concept may not be fused; the message gives every reason.

    """
    concept = check_fits(concept_from_bytes(data), base)
    reasons = beyond_bounds(concept, base)
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
