"""A concept: the words that name it and the low-rank changes that draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.fingerprint import is_base, why_not
from mos_common.names import check_concept_name


@dataclass(frozen=True)
class Concept:
    """One subject that a participant has taught the base model.

    `words[k]` holds the embeddings of text encoder k: one row for each word and each
    cross-attention layer, in execution order. `pairs` maps layer names (`mos_common.layers`) to
    their change. An ordinary LoRA has no words: prompts use `trigger`, ordinary text, or else its
    class word.
    """

    name: str
    class_word: str
    base_fingerprint: str
    pairs: Mapping[str, LowRank]
    words: Sequence[Float[Tensor, "layers words width"]] = field(default_factory=tuple)
    tool_version: str = ""
    licence: str = ""
    author: str = ""
    trigger: str = ""

    def __post_init__(self) -> None:
        check_concept_name(self.name)


def words_of(concept: Concept, base: Base) -> Float[Tensor, "layers words width"]:
    """Return the embeddings that replace the concept's name in a prompt.

    They are its words, or the base's own embeddings of its trigger, the same in all layers.

    Raises:
        ConceptError: the base's tokenizer finds no tokens in the trigger.

    """
    if concept.words:
        return torch.cat([words.float().cpu() for words in concept.words], dim=2)
    text = concept.trigger or concept.class_word
    ids = list(base.tokenizer(text, add_special_tokens=False).input_ids)
    if not ids:
        raise ConceptError(f"{text!r}, by which {concept.name} is called, has no tokens for {base.name}")
    return base.token_rows(ids)[None]


def check_fits(concept: Concept, base: Base) -> Concept:
    """Check that a concept fits a base model; return it with the base's current fingerprint.

    Raises:
        ConceptError: neither fingerprint of the base, current or legacy, is the concept's; or some
            tensors are unknown to the base, have the wrong shape, or are not finite (all are
            listed); or its name is a word of the base's own.

    """
    if not is_base(concept.base_fingerprint, base):
        raise ConceptError(
            f"concept {concept.name} was tuned on base model {concept.base_fingerprint[:12]}, this is "
            f"{base.name} ({base.fingerprint[:12]})"
            f"{why_not(concept.base_fingerprint, base)}: use the base it was tuned on (--base), or tune it "
            f"again on this one"
        )
    check_name_is_free(concept.name, base)
    problems = [*_pair_problems(concept, base), *_word_problems(concept, base)]
    if problems:
        raise ConceptError(f"concept {concept.name} does not fit {base.name}: " + "; ".join(problems[:8]))
    return replace(concept, base_fingerprint=base.fingerprint)


def check_name_is_free(name: str, base: Base) -> None:
    """Check that a concept's name is not already a word of the base, as in DreamBooth models.

    Raises:
        ConceptError: it is, so a prompt with it could mean either.

    """
    if name in base.tokenizer.get_added_vocab():
        raise ConceptError(
            f"{name} is a word that {base.name} knows itself, so a prompt with it could mean either: "
            "give the concept another name (--concept)"
        )


def _pair_problems(concept: Concept, base: Base) -> list[str]:
    layers = base.layout.by_name
    problems = []
    for name, pair in concept.pairs.items():
        if name not in layers:
            problems.append(f"{name} is not a layer of the base")
            continue
        layer, rank = layers[name], pair.rank
        for key, tensor, expected in (("lora_A", pair.A, (rank, layer.d_in)), ("lora_B", pair.B, (layer.d_out, rank))):
            if tuple(tensor.shape) != expected:
                problems.append(f"{name}.{key}.weight has shape {tuple(tensor.shape)}, the base needs {expected}")
            elif not torch.isfinite(tensor).all():
                problems.append(f"{name}.{key}.weight holds NaN or infinity")
    return problems


def _word_problems(concept: Concept, base: Base) -> list[str]:
    if not concept.words:
        return []
    if len(concept.words) != len(base.token_tables):
        return [f"embeddings for {len(concept.words)} text encoders, the base has {len(base.token_tables)}"]
    layers, problems = base.layout.word_layers, []
    for k, (words, table) in enumerate(zip(concept.words, base.token_tables, strict=True)):
        expected = (layers, concept.words[0].shape[1], table.shape[1])
        if tuple(words.shape) != expected:
            wanted = f"({layers}, words, {table.shape[1]})"
            problems.append(f"embeddings.{k} has shape {tuple(words.shape)}, the base needs {wanted}")
        elif not torch.isfinite(words).all():
            problems.append(f"embeddings.{k} holds NaN or infinity")
    return problems
