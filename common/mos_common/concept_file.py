"""Concepts as safetensors files: written canonically, read strictly, nothing executable.

Tensors: `<layer>.lora_A.weight` (r x d_in), `<layer>.lora_B.weight` (d_out x r) and
`embeddings.<k>` (cross-attention layers x words x width) for text encoder k. Metadata: the single
key `mos` with canonical JSON (safetensors writes several keys in random order, and equal concepts
should be equal files).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import Concept, check_fits
from mos_common.digests import digest_of_tensors
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.files import canonical_json, write_atomically
from mos_common.json_models import JsonModelError, StrictModel, first_problem, from_json
from mos_common.names import CONCEPT_NAME
from mos_common.texts import PRINTABLE, Text

METADATA_KEY = "mos"
# A rank-4 concept of SD 1.5 is 2.3 MB, of SDXL 15 MB; Flower messages stay below this too.
MAX_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**20
MAX_RANK = 256
MAX_WORDS = 16
MAX_TENSORS = 4096
DTYPES = {torch.float16: "F16", torch.float32: "F32", torch.bfloat16: "BF16"}
PAIR = re.compile(r"(?P<layer>(?:unet|text_encoder|text_encoder_2)\.[a-z0-9_.]{1,200})\.lora_(?P<half>[AB])\.weight")
EMBEDDINGS = re.compile(r"embeddings\.(?P<encoder>[01])")
LayerName = Annotated[str, Field(max_length=220, pattern=r"^[a-z0-9_.]+$")]


class Header(StrictModel):
    """The metadata of a concept file."""

    model_config = ConfigDict(strict=True)
    format: Literal[1]
    name: Annotated[str, Field(max_length=64, pattern=f"^{CONCEPT_NAME.pattern}$")]
    class_word: Annotated[str, Field(max_length=64), PRINTABLE]
    base: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    layers: dict[LayerName, Annotated[tuple[int, float], Field(strict=False)]]  # JSON has no tuples
    tool: Text
    licence: Text
    author: Text
    trigger: Text = ""


def concept_to_bytes(concept: Concept, dtype: torch.dtype = torch.float16) -> bytes:
    """Return the concept as the bytes of a file.

    Factors are balanced before they are rounded to `dtype`, and alpha becomes the rank.

    Raises:
        ConceptError: a value does not fit into `dtype`, or a text is too long or not printable.

    """
    balanced = {name: pair.balanced() for name, pair in concept.pairs.items()}
    tensors = {f"embeddings.{k}": words.to(dtype) for k, words in enumerate(concept.words)}
    for name, pair in balanced.items():
        tensors[f"{name}.lora_A.weight"] = pair.A.to(dtype)
        tensors[f"{name}.lora_B.weight"] = pair.B.to(dtype)
    _check_finite(concept.name, tensors)
    try:
        header = Header(
            format=1,
            name=concept.name,
            class_word=concept.class_word,
            base=concept.base_fingerprint,
            layers={name: (pair.rank, pair.alpha) for name, pair in balanced.items()},
            tool=concept.tool_version,
            licence=concept.licence,
            author=concept.author,
            trigger=concept.trigger,
        )
    except ValidationError as error:
        raise ConceptError(
            f"concept {concept.name} cannot be written: metadata field {first_problem(error)}"
        ) from error
    contiguous = {name: tensors[name].cpu().contiguous() for name in sorted(tensors)}
    return save(contiguous, {METADATA_KEY: canonical_json(header.model_dump(exclude_defaults=True)).decode()})


def concept_from_bytes(data: bytes) -> Concept:
    """Read the concept in `data`, after every check that needs no base model.

    Raises:
        ConceptError: the bytes are not a concept file; the message names the tensor or field.

    """
    header, tensors = _parse(data)
    pairs: dict[str, dict[str, Tensor]] = {}
    words: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        if match := PAIR.fullmatch(name):
            pairs.setdefault(match["layer"], {})[match["half"]] = tensor
        elif match := EMBEDDINGS.fullmatch(name):
            words[int(match["encoder"])] = tensor
        else:
            raise ConceptError(f"tensor {name!r} is not part of a concept file")
    if sorted(words) != list(range(len(words))):
        raise ConceptError("embeddings.1 needs embeddings.0, which is missing")
    return Concept(
        name=header.name,
        class_word=header.class_word,
        base_fingerprint=header.base,
        pairs=_paired(pairs, header),
        words=tuple(_checked_words(words[k], k) for k in sorted(words)),
        tool_version=header.tool,
        licence=header.licence,
        author=header.author,
        trigger=header.trigger,
    )


def write_concept(concept: Concept, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a concept file, atomically."""
    write_atomically(path, concept_to_bytes(concept, dtype))


def bytes_at_most(base: Base) -> int:
    """Return how many bytes a concept file of `base` has at most, never more than MAX_BYTES.

    It may change every layer, in the widest number format. A rank above a layer's smaller side
    says nothing more: a file that uses such ranks in every layer has to use a narrower format.
    """
    largest = max(dtype.itemsize for dtype in DTYPES)
    numbers = sum(min(MAX_RANK, each.d_in, each.d_out) * (each.d_in + each.d_out) for each in base.layout.layers)
    numbers += sum(base.layout.word_layers * MAX_WORDS * table.shape[1] for table in base.token_tables)
    return min(MAX_BYTES, 8 + MAX_HEADER_BYTES + largest * numbers)


def read_concept(path: Path) -> Concept:
    """Read a concept file, strictly.

    Raises:
        ConceptError: it is missing or not a concept file; the message names file and tensor.

    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConceptError(f"{path.stat().st_size} bytes; a concept file has at most {MAX_BYTES}")
        return concept_from_bytes(path.read_bytes())
    except OSError as error:
        raise ConceptError(f"concept file {path} cannot be read: {error.strerror}") from error
    except ConceptError as error:
        raise ConceptError(f"{path} is not a usable concept file: {error}") from error


def rekey_concept(path: Path, base: Base, *, mode: int = 0o644) -> None:
    """Replace the legacy fingerprint in a concept file by the current one; keep every tensor bit.

    Raises:
        ConceptError: the file is not a concept file, or belongs to another base.
        StateError: it cannot be written.

    """
    concept = read_concept(path)
    check_fits(concept, base)
    if concept.base_fingerprint == base.fingerprint:
        return
    # Both fingerprints have the same length, so nothing in the file moves.
    old, new = concept.base_fingerprint.encode(), base.fingerprint.encode()
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    write_atomically(path, data[:end].replace(old, new) + data[end:], mode=mode)


def content_digest(concept: Concept) -> str:
    """Return the sha256 of sorted (name, dtype, shape, bytes) of tensors, and of alphas.

    The concept must be as read from its file. The digest keys statistics and seeds, so editing the
    licence or author does not change it; editing an alpha makes another concept.
    """
    alphas = [f"{name}\0{pair.alpha}\0".encode() for name, pair in sorted(concept.pairs.items())]
    return digest_of_tensors(concept_tensors(concept), also=b"".join(alphas))


def concept_tensors(concept: Concept) -> dict[str, Tensor]:
    """Return the tensors of a concept by their names in the file."""
    tensors = {f"embeddings.{k}": words for k, words in enumerate(concept.words)}
    for name, pair in concept.pairs.items():
        tensors[f"{name}.lora_A.weight"] = pair.A
        tensors[f"{name}.lora_B.weight"] = pair.B
    return tensors


def _parse(data: bytes) -> tuple[Header, dict[str, Tensor]]:
    if not 8 < len(data) <= MAX_BYTES:
        raise ConceptError(f"{len(data)} bytes; a concept file has more than 8 and at most {MAX_BYTES}")
    header_bytes = int.from_bytes(data[:8], "little")
    if header_bytes > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ConceptError("the safetensors header is longer than the file or than any concept needs")
    try:
        described = json.loads(data[8 : 8 + header_bytes])
        metadata = described.get("__metadata__", {})
        if len(described) > MAX_TENSORS or set(metadata) != {METADATA_KEY}:
            raise ConceptError(
                f"expected at most {MAX_TENSORS} tensors and the one metadata key {METADATA_KEY!r}, got "
                f"{sorted(metadata)[:5]}"
            )
        header = from_json(Header, metadata[METADATA_KEY])
        tensors = load(data)
    except JsonModelError as error:
        raise ConceptError(f"metadata field {error}") from error
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ConceptError(f"not a safetensors file ({type(error).__name__})") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ConceptError(f"tensor {name!r} is {tensor.dtype}; a concept holds float16, bfloat16 or float32")
    _check_finite(header.name, tensors)
    return header, tensors


def _paired(pairs: dict[str, dict[str, Tensor]], header: Header) -> dict[str, LowRank]:
    if pairs.keys() != header.layers.keys():
        odd = sorted(pairs.keys() ^ header.layers.keys())[0]
        raise ConceptError(f"layer {odd} is in the tensors or in the metadata, but not in both")
    whole = {}
    for layer, halves in sorted(pairs.items()):
        rank, alpha = header.layers[layer]
        if len(halves) != 2:
            raise ConceptError(
                f"layer {layer} has only lora_{next(iter(halves))}.weight; expected both lora_A and lora_B"
            )
        A, B = halves["A"], halves["B"]
        if A.ndim != 2 or B.ndim != 2 or not A.shape[0] == B.shape[1] == rank or not 1 <= rank <= MAX_RANK:
            raise ConceptError(
                f"layer {layer}: shapes {tuple(A.shape)} and {tuple(B.shape)} are not a pair of rank {rank} (1 "
                f"to {MAX_RANK})"
            )
        if not 0 < alpha <= 1e4:
            raise ConceptError(f"layer {layer}: alpha {alpha} is out of range: expected more than 0 and at most 10000")
        whole[layer] = LowRank(A, B, alpha)
    return whole


def _checked_words(words: Tensor, encoder: int) -> Tensor:
    if words.ndim != 3 or not 1 <= words.shape[1] <= MAX_WORDS:
        raise ConceptError(
            f"embeddings.{encoder} has shape {tuple(words.shape)}; expected (layers, 1 to {MAX_WORDS} words, width)"
        )
    return words


def _check_finite(name: str, tensors: dict[str, Tensor]) -> None:
    for tensor_name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ConceptError(f"tensor {tensor_name!r} of concept {name} holds NaN or infinity")
