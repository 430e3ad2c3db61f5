"""Make a concept file of what people have: what `mos-client import` does."""

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
    """A concept of one LoRA, one textual inversion, or both together; its file is written to `out`.

    A LoRA without embeddings is called by `trigger`, the words that its prompts need, else by its class word. `paper_alpha` is the
    factor that the paper's code multiplies its changes by when it samples. With `rank` every change is brought to at most that rank.

    Raises:
        ConceptError: a file cannot be read, is of a kind that is not imported, is too large, or was made for another base.
        RequestError, StateError: the name or the trigger breaks the grammar, or `out` cannot be written.

    """
    check_concept_name(concept)
    for said, text in (("--class", class_word), ("--trigger", trigger)):
        if TOKEN.search(text):
            raise RequestError(
                f"{said} {text!r}: expected ordinary words, such as 'cat'; <…> stands for another concept"
            )
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
    words_of(imported, base)  # what it is called by has to be something that the base reads
    write_atomically(out, _as_file(imported))
    return imported


def _of_rank(pairs: Mapping[str, LowRank], rank: int) -> dict[str, LowRank]:
    found = {name: truncated(pair, rank) for name, pair in pairs.items()}
    if found:
        least = min(found, key=lambda name: found[name][1])
        log.info("of rank %d it keeps at least %.1f %% of every change (%s)", rank, 100 * found[least][1], least)
    return {name: pair for name, (pair, _) in found.items()}


def _as_file(concept: Concept) -> bytes:
    """The concept file, and that it can be read again.

    Raises:
        ConceptError: it would break a limit of concept files; the message says which rank would not.

    """
    data, highest = concept_to_bytes(concept), max((pair.rank for pair in concept.pairs.values()), default=0)
    if len(data) > MAX_BYTES or highest > MAX_RANK:
        fits = max(1, min(MAX_RANK, highest * MAX_BYTES // len(data)))
        raise ConceptError(
            f"{concept.name} would be a file of {len(data):,} bytes, of rank {highest}; a concept has at most {MAX_BYTES:,} "
            f"and {MAX_RANK}: import it with --rank {fits} or lower"
        )
    concept_from_bytes(data)
    return data


def _read(file: Path, base: Base, paper_alpha: float) -> tuple[dict[str, LowRank], Words]:
    file, config = _of_peft(file)
    found, metadata = read_tensors(file)
    paper = found.get("params", found)
    if isinstance(paper, Mapping) and any(isinstance(paper.get(part), Mapping) for part in PAPER_PARTS):
        return _paper_checkpoint(paper, base, paper_alpha)
    if words := textual_inversion(found, base):
        return {}, words
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise ConceptError(f"{file} holds no tensors that are known: expected a LoRA or a textual inversion")
    return pairs_of(tensors, metadata | config, base), ()


def _of_peft(file: Path) -> tuple[Path, dict[str, str]]:
    """PEFT saves a folder: its alpha is not in the file of tensors but in a configuration beside it."""
    if file.is_dir():
        file = file / f"{PEFT_FILE}.safetensors"
    config = file.with_name(PEFT_CONFIG)
    if file.stem != PEFT_FILE:
        return file, {}
    if not config.is_file():
        log.warning("%s is not there: alpha is taken to be the rank", config)
        return file, {}
    return file, {PEFT_CONFIG: config.read_text(encoding="utf-8", errors="replace")}


def _paper_checkpoint(params: Mapping[str, Any], base: Base, paper_alpha: float) -> tuple[dict[str, LowRank], Words]:
    """`edlora.pth`. Its changes are alpha · up · down, not divided by the rank: in our convention their alpha is that times the rank."""
    embeddings, *adapters = (params.get(part) or {} for part in PAPER_PARTS)
    tensors: dict[str, Tensor] = {}
    for part, found in zip(PAPER_PARTS[1:], adapters, strict=True):
        if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
            raise ConceptError(f"its {part!r} is not named tensors, as in the checkpoints of the paper's repository")
        tensors |= {f"{part}.{name}": tensor for name, tensor in found.items() if not str(name).endswith(".alpha")}
    if not isinstance(embeddings, Mapping):
        raise ConceptError(
            f"its {PAPER_PARTS[0]!r} is not named tensors, as in the checkpoints of the paper's repository"
        )
    pairs = pairs_of(tensors, {}, base) if tensors else {}
    scaled = {name: LowRank(pair.A, pair.B, paper_alpha * pair.rank) for name, pair in pairs.items()}
    return scaled, paper_words(embeddings, base) if embeddings else ()
