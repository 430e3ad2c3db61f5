"""Make a concept file of other tools' files, for `mos-client import`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from mos_client.importing.lora import PEFT_CONFIG, pairs_of, truncated
from mos_client.importing.safe_reading import read_tensors
from mos_client.importing.words import Words, paper_words, textual_inversion
from mos_common.base_model import Base
from mos_common.concept import Concept, check_fits, words_of
from mos_common.concept_file import MAX_BYTES, MAX_RANK, concept_from_bytes, concept_to_bytes
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError, RequestError
from mos_common.files import check_writable, write_atomically
from mos_common.names import check_concept_name
from mos_common.words import TOKEN

log = logging.getLogger(__name__)
PAPER_PARTS = ("new_concept_embedding", "text_encoder", "unet")
PEFT_FILE = "adapter_model"


def import_files(
    files: Sequence[Path],
    *,
    concept: str,
    class_word: str,
    base: Base,
    out: Path,
    trigger: str = "",
    paper_alpha: float = 1.0,
    rank: int | None = None,
    author: str = "",
    licence: str = "",
) -> Concept:
    """Make a concept of one LoRA, one textual inversion, or both, and write its file to `out`.

    Prompts call a LoRA without embeddings by `trigger`, the words that its prompts need, or else
    by its class word. `paper_alpha` is the factor by which the paper's code scales its changes when
    it samples. With `rank`, every change is reduced to at most that rank.

    Raises:
        ConceptError: a file cannot be read, is of a kind that cannot be imported, is too large, or
            was made for another base.
        RequestError, StateError: the name or the trigger breaks the grammar, or `out` cannot be
            written.

    """
    check_concept_name(concept)
    for flag, text in (("--class", class_word), ("--trigger", trigger)):
        if TOKEN.search(text):
            raise RequestError(
                f"{flag} {text!r}: expected ordinary words, such as 'cat'; <…> stands for another concept"
            )
    check_writable(out)
    pairs: dict[str, LowRank] = {}
    words: Words = ()
    for file in files:
        file_pairs, file_words = _read(file, base, paper_alpha)
        if (pairs and file_pairs) or (words and file_words):
            raise ConceptError(
                f"{file} is a second {'LoRA' if file_pairs else 'embedding'}: a concept is made of at most one of each"
            )
        pairs, words = pairs | file_pairs, words or file_words
    if words and trigger:
        raise ConceptError(f"{concept} has words of its own, so prompts call it by its name: leave out --trigger")
    if rank is not None:
        pairs = _of_rank(pairs, rank)
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
    words_of(imported, base)  # raises if the base cannot read the words that prompts call it by
    write_atomically(out, _as_file(imported))
    return imported


def _of_rank(pairs: Mapping[str, LowRank], rank: int) -> dict[str, LowRank]:
    reduced = {name: truncated(pair, rank) for name, pair in pairs.items()}
    if reduced:
        least = min(reduced, key=lambda name: reduced[name][1])
        log.info("rank %d keeps at least %.1f %% of every change (least: %s)", rank, 100 * reduced[least][1], least)
    return {name: pair for name, (pair, _) in reduced.items()}


def _as_file(concept: Concept) -> bytes:
    """Return the bytes of the concept file, after checking that they can be read again.

    Raises:
        ConceptError: the file would exceed a limit; the message gives a rank that fits.

    """
    data, highest = concept_to_bytes(concept), max((pair.rank for pair in concept.pairs.values()), default=0)
    if len(data) > MAX_BYTES or highest > MAX_RANK:
        fits = max(1, min(MAX_RANK, highest * MAX_BYTES // len(data)))
        raise ConceptError(
            f"{concept.name} would be a file of {len(data):,} bytes, of rank {highest}; "
            f"a concept has at most {MAX_BYTES:,} bytes and rank {MAX_RANK}: import it with --rank {fits} or lower"
        )
    concept_from_bytes(data)
    return data


def _read(file: Path, base: Base, paper_alpha: float) -> tuple[dict[str, LowRank], Words]:
    file, config = _of_peft(file)
    content, metadata = read_tensors(file)
    paper = content.get("params", content)
    if isinstance(paper, Mapping) and any(isinstance(paper.get(part), Mapping) for part in PAPER_PARTS):
        return _paper_checkpoint(paper, base, paper_alpha)
    if words := textual_inversion(content, base):
        return {}, words
    tensors = {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ConceptError(f"{file} has no known tensors: expected a LoRA or a textual inversion")
    return pairs_of(tensors, metadata | config, base), ()


def _of_peft(file: Path) -> tuple[Path, dict[str, str]]:
    """Return the file of tensors in a PEFT folder and its configuration, which has the alpha."""
    if file.is_dir():
        file = file / f"{PEFT_FILE}.safetensors"
    config = file.with_name(PEFT_CONFIG)
    if file.stem != PEFT_FILE:
        return file, {}
    if not config.is_file():
        log.warning("%s is missing: alpha is assumed to equal the rank", config)
        return file, {}
    return file, {PEFT_CONFIG: config.read_text(encoding="utf-8", errors="replace")}


def _paper_checkpoint(params: Mapping[str, Any], base: Base, paper_alpha: float) -> tuple[dict[str, LowRank], Words]:
    """Return pairs and words of `edlora.pth`.

    Its changes are alpha · up · down, not divided by the rank; our alpha is therefore that times
    the rank.
    """
    embeddings, *adapters = (params.get(part) or {} for part in PAPER_PARTS)
    tensors: dict[str, Tensor] = {}
    for part, adapter in zip(PAPER_PARTS[1:], adapters, strict=True):
        if not isinstance(adapter, Mapping) or not all(isinstance(tensor, Tensor) for tensor in adapter.values()):
            raise ConceptError(f"its {part!r} does not hold named tensors, as the paper's checkpoints do")
        tensors |= {f"{part}.{name}": tensor for name, tensor in adapter.items() if not str(name).endswith(".alpha")}
    if not isinstance(embeddings, Mapping):
        raise ConceptError(f"its {PAPER_PARTS[0]!r} does not hold named tensors, as the paper's checkpoints do")
    pairs = pairs_of(tensors, {}, base) if tensors else {}
    scaled = {name: LowRank(pair.A, pair.B, paper_alpha * pair.rank) for name, pair in pairs.items()}
    return scaled, paper_words(embeddings, base) if embeddings else ()
