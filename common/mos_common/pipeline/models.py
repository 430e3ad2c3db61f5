"""What draws: a fused model or a concept, what it adds to its base, and what recipes say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import check_fits, words_of
from mos_common.concept_file import content_digest, read_concept
from mos_common.digests import digest_of_file
from mos_common.edlora import LowRank
from mos_common.errors import FusionError, RequestError
from mos_common.fused_model import Manifest, check_base, read_fused
from mos_common.model_files import MANIFEST
from mos_common.model_folder import check_kit_applies
from mos_common.own.attach import Kept
from mos_common.recipes import CreditedConcept, Model


@dataclass(frozen=True)
class Opened:
    """What a model adds to its base, its class words, and what recipes say of it.

    `manifest` is that of a fused model. `called` is the ordinary text that names a single concept
    without words of its own. `own` are the own changes to draw with, `kept` what drawings leave for
    the next.
    """

    changes: Mapping[str, LowRank]
    vocabulary: Mapping[str, Tensor]
    classes: Mapping[str, str]
    told: Model
    concepts: tuple[CreditedConcept, ...]
    manifest: Manifest | None = None
    called: str = ""
    own: Mapping[str, Mapping[str, LowRank]] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)


def check_model_is_there(model: Path, kit: Path | None) -> None:
    """Check that there is something at a model's path, and that a kit goes with it.

    Raises:
        RequestError: there is not, or it does not.

    """
    if not model.exists():
        raise RequestError(f"no model at {model}: give a fused model's folder or a concept file")
    check_kit_applies(kit, model)


def open_model(model: Path, base: Base, kit: Path | None = None) -> Opened:
    """Read a fused model or a concept file that fits the base.

    Raises:
        BaseModelError, ConceptError, FusionError, TrustError: it does not fit, or is damaged.

    """
    if model.is_dir():
        fused = read_fused(model, kit=kit)
        check_base(fused, base)
        concepts = tuple(
            CreditedConcept(token=each.token, digest=each.digest, author=each.author, licence=each.licence)
            for each in fused.manifest.concepts
        )
        told = Model(kind="fused", name=fused.manifest.round or "fused by hand", digest=_digest_of_folder(model))
        classes = {each.token: each.class_word for each in fused.manifest.concepts}
        return Opened(fused.changes, fused.vocabulary, classes, told, concepts, fused.manifest)
    concept = read_concept(model)
    check_fits(concept, base)
    digest = content_digest(concept)
    named = CreditedConcept(token=concept.name, digest=digest, author=concept.author, licence=concept.licence)
    told = Model(kind="concept", name=concept.name, digest=digest)
    classes = {concept.name: concept.class_word}
    called = "" if concept.words else concept.trigger or concept.class_word
    return Opened(concept.pairs, {concept.name: words_of(concept, base)}, classes, told, (named,), called=called)


def digest_of_model(model: Path) -> str:
    """Return the digest by which recipes know a model, without its base.

    Raises:
        ConceptError, FusionError: there is none.

    """
    return _digest_of_folder(model) if model.is_dir() else content_digest(read_concept(model))


def _digest_of_folder(folder: Path) -> str:
    """Return the digest of the manifest, which has those of all other files."""
    try:
        return digest_of_file(folder / MANIFEST)
    except OSError as error:
        raise FusionError(f"{folder} is not a fused model: {MANIFEST} is missing") from error
