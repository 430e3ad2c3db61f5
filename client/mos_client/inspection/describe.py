"""Describe a concept file, for `mos-client inspect` and before an upload."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from mos_common.concept import Concept
from mos_common.concept_file import concept_tensors, content_digest, read_concept

BLOCK = re.compile(r"^(\w+)\..*(?:transformer_blocks|attentions|resnets|layers)\.\d+")
FEW = 40  # lines a person still reads; beyond that, layers of a kind share a line


def describe(file: Path) -> Iterator[str]:
    """Yield lines: the file, its metadata, every tensor with shape, dtype and bytes.

    Raises:
        ConceptError: it is not a concept file.

    """
    concept = read_concept(file)
    yield f"{file}: {file.stat().st_size:,} bytes, no pictures, no captions, nothing executable"
    yield from describe_concept(concept)


def describe_concept(concept: Concept) -> Iterator[str]:
    """Yield the metadata and every tensor of a concept as read from its file."""
    yield f"concept     {concept.name}, a {concept.class_word}"
    yield f"digest      {content_digest(concept)}"
    yield f"base        {concept.base_fingerprint}"
    yield f"written by  {concept.tool_version or '-'}"
    yield f"author      {concept.author or '-'}"
    yield f"licence     {concept.licence or '-'}"
    for name, tensor in sorted(concept_tensors(concept).items()):
        yield f"  {name}  {_shape(tensor)}  {str(tensor.dtype).removeprefix('torch.')}  {_bytes(tensor):,} bytes"
    yield _total(concept)


def describe_briefly(concept: Concept) -> Iterator[str]:
    """Yield every tensor's shape and bytes; beyond `FEW` lines, layers of a kind share one."""
    tensors = sorted(concept_tensors(concept).items())
    kinds: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        kinds.setdefault(name if len(tensors) <= FEW else _kind(name), []).append(tensor)
    longest = max(map(len, kinds), default=0)
    for kind, alike in kinds.items():
        shapes = Counter(map(_shape, alike))
        listed = ", ".join(f"{count} of {shape}" if len(alike) > 1 else shape for shape, count in shapes.items())
        yield f"  {kind:<{longest}}  {listed}  {sum(map(_bytes, alike)):,} bytes"
    yield _total(concept)


def _kind(name: str) -> str:
    """Return a tensor's name with a star for its block."""
    return BLOCK.sub(r"\1.*", name)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _total(concept: Concept) -> str:
    tensors = concept_tensors(concept).values()
    return f"{len(tensors)} tensors, {sum(map(_bytes, tensors)):,} bytes"
