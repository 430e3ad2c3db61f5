"""The model that is exported: a fused one, or one concept as its owner has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import check_fits, words_of
from mos_common.concept_file import read_concept
from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.fused_model import check_base, read_fused
from mos_common.model_folder import check_kit_applies


@dataclass(frozen=True)
class Credit:
    """One concept of an export: its token, its maker, and the plain text it is called by.

    `called` is empty for a concept that has words of its own.
    """

    token: str
    author: str
    licence: str
    called: str = ""


@dataclass(frozen=True)
class Shared:
    """Weight changes and words to write for other tools, and what is told about them.

    `vocabulary` maps tokens to layer-wise words (layers x words x width). `origin` says in a few
    words how the changes were made.
    """

    title: str
    origin: str
    base_name: str
    base_fingerprint: str
    credits: tuple[Credit, ...]
    changes: Mapping[str, LowRank]
    vocabulary: Mapping[str, Tensor]


def read_shared(source: Path, base: Base, kit: Path | None = None) -> Shared:
    """Read a fused model's folder or a concept file, and check that it fits the base.

    `kit` says whose signature a fused model must bear, if it does not lie in a state folder.

    Raises:
        RequestError: there is nothing at `source`, or a kit and a concept file.
        FusionError, ConceptError, BaseModelError: it is damaged, or was made for another base.
        TrustError: a file of a fused model was changed, or its signature does not hold.

    """
    check_kit_applies(kit, source)
    if source.is_file():
        return _of_concept(source, base)
    if not source.exists() and source.suffix == ".safetensors":
        raise RequestError(f"no concept file at {source}: give a concept file or a fused model's folder")
    return _of_fused(source, base, kit)


def _of_fused(folder: Path, base: Base, kit: Path | None) -> Shared:
    fused = read_fused(folder, kit=kit)
    check_base(fused, base)
    told = sorted(fused.manifest.concepts, key=lambda concept: concept.token)
    return Shared(
        title=f"Fused model of {', '.join(concept.token for concept in told)}",
        origin=f"Low-rank changes of a fused model (federated Mix-of-Show, method {fused.manifest.method})",
        base_name=fused.manifest.base_name,
        base_fingerprint=fused.manifest.base,
        credits=tuple(Credit(concept.token, concept.author, concept.licence) for concept in told),
        changes=fused.changes,
        vocabulary=fused.vocabulary,
    )


def _of_concept(file: Path, base: Base) -> Shared:
    concept = check_fits(read_concept(file), base)
    called = "" if concept.words else concept.trigger or concept.class_word
    return Shared(
        title=f"Concept {concept.name}, a {concept.class_word}",
        origin="Low-rank changes of one concept (federated Mix-of-Show, ED-LoRA)",
        base_name=base.name,
        base_fingerprint=concept.base_fingerprint,
        credits=(Credit(concept.name, concept.author, concept.licence, called),),
        changes=concept.pairs,
        vocabulary={} if called else {concept.name: words_of(concept, base)},
    )
