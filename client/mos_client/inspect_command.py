"""Say what a concept file holds: what `mos-client inspect` prints, and what a participant is shown before an upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mos_common.concept import Concept
from mos_common.concept_file import concept_tensors, content_digest, read_concept


def describe(file: Path) -> Iterator[str]:
    """Line by line: the file, its metadata, every tensor with shape, number format and bytes.

    Raises:
        ConceptError: it is not a concept file.

    """
    concept = read_concept(file)
    yield f"{file}: {file.stat().st_size:,} bytes, no pictures, no captions, nothing executable"
    yield from describe_concept(concept)


def describe_concept(concept: Concept) -> Iterator[str]:
    """The metadata and every tensor of a concept as read from its file."""
    yield f"concept     {concept.name}, a {concept.class_word}"
    yield f"digest      {content_digest(concept)}"
    yield f"base        {concept.base_fingerprint}"
    yield f"written by  {concept.tool_version or '-'}"
    yield f"author      {concept.author or '-'}"
    yield f"licence     {concept.licence or '-'}"
    total = 0
    for name, tensor in sorted(concept_tensors(concept).items()):
        size = tensor.numel() * tensor.element_size()
        total += size
        yield f"  {name}  {tuple(tensor.shape)}  {str(tensor.dtype).removeprefix('torch.')}  {size:,} bytes"
    yield f"{len(concept_tensors(concept))} tensors, {total:,} bytes"
