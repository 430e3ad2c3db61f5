"""Make a concept file of other tools' files, for `mos-client import`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from mos_client.importing.file_kinds import kind_of_tensors
from mos_client.importing.grouping import FACTOR
from mos_client.importing.lora import Adapter, read_adapter
from mos_client.importing.paper import paper_checkpoint
from mos_client.importing.report import report_of
from mos_client.importing.sources import Source, read_sources
from mos_client.importing.trigger import choose_trigger
from mos_client.importing.words import BUNDLED, Words, bundled_words, textual_inversion, without_bundle
from mos_common.base_model import Base
from mos_common.concept import Concept, check_fits, words_of
from mos_common.concept_file import MAX_BYTES, MAX_RANK, concept_from_bytes, concept_to_bytes
from mos_common.errors import ConceptError, RequestError
from mos_common.files import check_writable, write_atomically
from mos_common.names import check_concept_name, is_ordinary_text
from mos_common.texts import checked_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """The choices of an import: the parts of the files that are taken.

    `rank`: reduce every change to at most that rank. `without_convolutions`: leave out the changes
    of convolutions larger than 1x1. `words`: the name of one of several bundled embeddings.
    `paper_alpha`: the factor by which the paper's code scales its changes when it samples.
    """

    rank: int | None = None
    without_convolutions: bool = False
    words: str = ""
    paper_alpha: float = 1.0


@dataclass
class Found:
    """The contents of one file or folder."""

    adapter: Adapter | None = None
    words: Words = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def import_files(
    files: Sequence[Path],
    *,
    concept: str,
    class_word: str,
    base: Base,
    out: Path,
    trigger: str = "",
    trigger_anyway: bool = False,
    paper_alpha: float = 1.0,
    rank: int | None = None,
    without_convolutions: bool = False,
    words: str = "",
    author: str = "",
    licence: str = "",
    report: Callable[[str], None] = log.info,
) -> Concept:
    """Make a concept of one LoRA, one textual inversion, or both, and write its file to `out`.

    Prompts call a LoRA without embeddings by `trigger`, or else by the words that its metadata
    names, or else by its class word; `trigger_anyway` keeps the metadata out of it. `report` is
    told what was read, how strong it is, and what was lost. The other arguments: `Wanted`.

    Raises:
        ConceptError: a file cannot be read, is of a kind that cannot be imported, is too large,
            changes nothing, or was made for another base; or it is not clear what is meant.
        RequestError, StateError: the name or a text breaks the grammar, or `out` cannot be written.

    """
    check_concept_name(concept)
    class_word, trigger = checked_text(class_word, "--class"), checked_text(trigger, "--trigger")
    author, licence = checked_text(author, "--author"), checked_text(licence, "--licence")
    for flag, text in (("--class", class_word), ("--trigger", trigger)):
        if not is_ordinary_text(text):
            raise RequestError(
                f"{flag} {text!r}: expected ordinary words, such as 'cat'; <…> stands for another concept"
            )
    if not math.isfinite(paper_alpha):
        raise RequestError(f"--paper-alpha {paper_alpha}: expected a finite number, such as 1")
    check_writable(out)
    found = _together(files, base, Wanted(rank, without_convolutions, words, paper_alpha))
    if found.words and trigger:
        raise ConceptError(f"{concept} has words of its own, so prompts call it by its name: leave out --trigger")
    chosen, told = (trigger, "") if found.words or trigger_anyway else choose_trigger(found.metadata, trigger)
    adapter = found.adapter or Adapter({})
    imported = Concept(
        name=concept,
        class_word=class_word,
        base_fingerprint=base.fingerprint,
        pairs=adapter.pairs,
        words=found.words,
        tool_version=f"federated-mix-of-show {version('federated-mix-of-show')}, imported",
        licence=licence,
        author=author,
        trigger=chosen,
    )
    try:
        check_fits(imported, base)
    except ConceptError as error:
        raise ConceptError(f"{error}{_made_for(found.metadata)}") from error
    words_of(imported, base)  # raises if the base cannot read the words that prompts call it by
    data = _as_file(imported)
    for line in report_of(concept_from_bytes(data), adapter, base, rank=rank, told=told):
        report(line)
    write_atomically(out, data)
    return imported


def _together(files: Sequence[Path], base: Base, wanted: Wanted) -> Found:
    """Read every file; raise ConceptError if two of them are of one kind."""
    whole = Found()
    for file in files:
        found = Found()
        for source in read_sources(file):
            _add(found, _read(source, base, wanted), file)
        _add(whole, found, file, of_another_file=True)
    if wanted.words and not whole.words:
        raise ConceptError(f"--words {wanted.words} chooses among the words in a LoRA's file, and there are none")
    return whole


def _add(whole: Found, found: Found, file: Path, *, of_another_file: bool = False) -> None:
    if (whole.words and found.words) or (of_another_file and whole.adapter and found.adapter):
        raise ConceptError(
            f"{file} is a second {'LoRA' if found.adapter and whole.adapter else 'embedding'}: "
            "a concept is made of at most one of each"
        )
    if found.adapter:
        whole.adapter = whole.adapter.joined(found.adapter) if whole.adapter else found.adapter
    whole.words = whole.words or found.words
    whole.metadata = {**whole.metadata, **found.metadata}


def _read(source: Source, base: Base, wanted: Wanted) -> Found:
    """Return what one file holds; raise ConceptError if it is nothing that can be imported."""
    if paper := paper_checkpoint(source.content, base, wanted.paper_alpha, wanted.rank):
        return Found(*paper)
    unknown = [name for name in source.content if not FACTOR.fullmatch(name) and not name.startswith(BUNDLED)]
    kind = kind_of_tensors(unknown, source.metadata)
    if kind:
        raise ConceptError(f"{source.file} {kind}")
    if words := textual_inversion(source.content, base):
        return Found(words=words, metadata=source.metadata)
    tensors, bundle = without_bundle(source.tensors)
    adapter = None
    if tensors:
        adapter = read_adapter(
            tensors,
            source.metadata,
            base,
            rank=wanted.rank,
            without_convolutions=wanted.without_convolutions,
        )
    return Found(adapter, bundled_words(bundle, base, wanted.words) if bundle else (), source.metadata)


def _made_for(metadata: Mapping[str, str]) -> str:
    """Return what a file says of its base, as the end of a refusal."""
    told = next((metadata[key] for key in ("modelspec.architecture", "ss_base_model_version") if metadata.get(key)), "")
    return f"; the file says that it is for {told[:60]!r}" if told else ""


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
