"""Make a concept file of what people have: what `mos-client import` does."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from mos_client.importing.lora import pairs_of
from mos_client.importing.safe_reading import read_tensors
from mos_client.importing.words import Words, paper_words, textual_inversion
from mos_common.base_model import BaseModel
from mos_common.concept import Concept, check_fits
from mos_common.concept_file import write_concept
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.files import check_writable
from mos_common.names import check_concept_name

log = logging.getLogger(__name__)


def import_files(
    files: Sequence[Path],
    *,
    concept: str,
    class_word: str,
    base: BaseModel,
    out: Path,
    trigger: str = "",
    paper_alpha: float = 1.0,
    author: str = "",
    licence: str = "",
) -> Concept:
    """A concept of one LoRA, one textual inversion, or both together; its file is written to `out`.

    A LoRA without embeddings is called by `trigger`, the words that its prompts need, else by its class word. `paper_alpha` is the
    factor that the paper's code multiplies its changes by when it samples.

    Raises:
        ConceptError: a file cannot be read, is of a kind that is not imported, or was made for another base.
        RequestError, StateError: the name breaks the grammar, or `out` cannot be written.

    """
    check_concept_name(concept)
    check_writable(out)
    pairs: dict[str, LowRank] = {}
    words: Words = ()
    for file in files:
        of_file, its_words = _read(file, base, paper_alpha)
        if (pairs and of_file) or (words and its_words):
            raise ConceptError(
                f"{file} is a second {'LoRA' if of_file else 'embedding'}: a concept is made of at most one of each"
            )
        pairs, words = pairs | of_file, words or its_words
    if words and trigger:
        raise ConceptError(f"{concept} has words of its own, so it is called by its name: leave out --trigger")
    imported = Concept(
        name=concept,
        class_word=class_word,
        base_fingerprint=base.fingerprint,
        pairs=pairs,
        words=words,
        tool_version=f"federated-mix-of-show {version('federated-mix-of-show')}, imported",
        licence=licence,
        author=author,
        trigger="" if words else trigger,
    )
    check_fits(imported, base)
    write_concept(imported, out)
    return imported


def _read(file: Path, base: BaseModel, paper_alpha: float) -> tuple[dict[str, LowRank], Words]:
    found, metadata = read_tensors(file)
    if isinstance(found.get("params"), Mapping):
        return _paper_checkpoint(found["params"], base, paper_alpha)
    if words := textual_inversion(found, base):
        return {}, words
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ConceptError(f"{file} holds no tensors that are known: expected a LoRA or a textual inversion")
    return pairs_of(tensors, metadata, base), ()


def _paper_checkpoint(
    params: Mapping[str, Any], base: BaseModel, paper_alpha: float
) -> tuple[dict[str, LowRank], Words]:
    """`edlora.pth`. Its changes are alpha · up · down, not divided by the rank: in our convention their alpha is that times the rank."""
    tensors: dict[str, Tensor] = {}
    for part in ("text_encoder", "unet"):
        tensors |= {f"{part}.{name}": tensor for name, tensor in (params.get(part) or {}).items()}
    pairs = pairs_of(tensors, {}, base) if tensors else {}
    scaled = {name: LowRank(pair.A, pair.B, paper_alpha * pair.rank) for name, pair in pairs.items()}
    embeddings = params.get("new_concept_embedding") or {}
    return scaled, paper_words(embeddings, base) if embeddings else ()
