"""A concept: the words that name it and the low-rank changes that draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import BaseModel
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.layers import adaptable_layers, cross_attentions
from mos_common.names import check_concept_name


@dataclass(frozen=True)
class Concept:
    """One thing that a participant has taught the base model.

    `words[k]` holds the embeddings of text encoder k: one row for each word and each cross-attention layer, in execution
    order. `pairs` maps layer names (`mos_common.layers`) to their change.
    """

    name: str
    class_word: str
    base_fingerprint: str
    pairs: Mapping[str, LowRank]
    words: Sequence[Float[Tensor, "layers words width"]] = field(default_factory=tuple)
    tool_version: str = ""
    licence: str = ""
    author: str = ""

    def __post_init__(self) -> None:
        check_concept_name(self.name)


def check_fits(concept: Concept, base: BaseModel) -> None:
    """Check a concept against the base model it is to be used with.

    Raises:
        ConceptError: with every tensor that is unknown to the base or has the wrong shape, or is not finite.

    """
    if concept.base_fingerprint != base.fingerprint:
        raise ConceptError(
            f"concept {concept.name} was tuned on base model {concept.base_fingerprint[:12]}, this is {base.name} ({base.fingerprint[:12]}): "
            "use the base it was tuned on (--base), or tune it again on this one"
        )
    problems = [*_pair_problems(concept, base), *_word_problems(concept, base)]
    if problems:
        raise ConceptError(f"concept {concept.name} does not fit {base.name}: " + "; ".join(problems[:8]))


def _pair_problems(concept: Concept, base: BaseModel) -> list[str]:
    layers = {layer.name: layer for layer in adaptable_layers(base)}
    problems = []
    for name, pair in concept.pairs.items():
        if name not in layers:
            problems.append(f"{name} is no layer of the base")
            continue
        layer, rank = layers[name], pair.rank
        for key, tensor, expected in (("lora_A", pair.A, (rank, layer.d_in)), ("lora_B", pair.B, (layer.d_out, rank))):
            if tuple(tensor.shape) != expected:
                problems.append(f"{name}.{key}.weight has shape {tuple(tensor.shape)}, the base needs {expected}")
            elif not torch.isfinite(tensor).all():
                problems.append(f"{name}.{key}.weight holds NaN or infinity")
    return problems


def _word_problems(concept: Concept, base: BaseModel) -> list[str]:
    if not concept.words:
        return []
    if len(concept.words) != 1:
        return [f"embeddings for {len(concept.words)} text encoders, the base has 1"]
    words, layers, width = concept.words[0], len(cross_attentions(base)), base.token_table.shape[1]
    if words.ndim != 3 or words.shape[0] != layers or words.shape[2] != width:
        return [f"embeddings.0 has shape {tuple(words.shape)}, the base needs ({layers}, words, {width})"]
    return [] if torch.isfinite(words).all() else ["embeddings.0 holds NaN or infinity"]
