"""Read tensors from other people's files without running anything in them.

safetensors holds only tensors. A file of `torch.save` is a zip with a pickle, a program that may
call any function it names. Its instructions are read, not run, until it is certain that they name
only tensors and ordered dictionaries. Then torch's own unpickler for weights runs them, which knows
no other functions either.
"""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mos_common.errors import ConceptError

MAX_BYTES = 4 * 2**30
MAX_PICKLE_BYTES = 16 * 2**20
ZIP = b"PK\x03\x04"
DAMAGED = (
    UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
)
"""Errors that readers raise on damaged bytes."""
HARMLESS = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        *(("torch", f"{kind}Storage") for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int")),
    }
)
"""All names that a file of tensors in plain containers needs."""


def read_tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the tensors of a file, by name in plain containers, and its metadata.

    Raises:
        ConceptError: it cannot be read, is too large, or holds anything except tensors in plain
            containers.

    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConceptError(f"{path} has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}: that is not a LoRA")
        if path.suffix.lower() == ".safetensors":
            return _read_safetensors(path)
        return _read_torch(path), {}
    except OSError as error:
        raise ConceptError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    data = path.read_bytes()
    try:
        tensors: dict[str, Any] = dict(load(data))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise ConceptError(f"{path} is not a safetensors file ({type(error).__name__})") from error
    return tensors, {str(k): str(v) for k, v in header.get("__metadata__", {}).items()}


def _read_torch(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        magic = file.read(len(ZIP))
    if magic != ZIP or not zipfile.is_zipfile(path):
        raise ConceptError(
            f"{path} is neither a safetensors file nor one that torch.save wrote: convert it to safetensors first"
        )
    for module, name in _named_by_pickle(path):
        if (module, name) not in HARMLESS:
            raise ConceptError(f"{path} is refused: it would call {module}.{name}, which no file of weights needs")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise ConceptError(f"{path} cannot be read ({type(error).__name__}): it is damaged") from error
    _check_plain(path, content)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConceptError(f"{path} holds a {type(content).__name__}; expected named tensors")
    return content


def _named_by_pickle(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of all that the pickle would import or whose name it computes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".pkl")]
            unpacked = sum(entry.file_size for entry in archive.infolist())
            packed = any(entry.compress_type for entry in archive.infolist()) or unpacked > path.stat().st_size
            if len(entries) != 1 or packed:
                raise ConceptError(f"{path} is not laid out as torch.save does it: convert it to safetensors first")
            if entries[0].file_size > MAX_PICKLE_BYTES:
                raise ConceptError(f"{path} is refused: its pickle alone has {entries[0].file_size:,} bytes")
            program = archive.read(entries[0])
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                yield module, name
            elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ", "NEWOBJ_EX"):
                yield "an object", f"by the instruction {opcode.name}"
    except (zipfile.BadZipFile, NotImplementedError, *DAMAGED) as error:
        raise ConceptError(f"{path} cannot be read ({type(error).__name__}): it is damaged") from error


def _check_plain(path: Path, value: object, depth: int = 0) -> None:
    if depth > 8:
        raise ConceptError(f"{path} is refused: its containers are nested more than eight deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str | int):
                raise ConceptError(f"{path} is refused: a {type(key).__name__} cannot name a tensor")
            _check_plain(path, inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(path, inner, depth + 1)
    elif isinstance(value, Tensor):
        # A view may repeat one number 10¹² times: tiny in the file, too large for memory once used.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ConceptError(f"{path} is refused: a tensor of shape {tuple(value.shape)} is larger than its data")
    elif not isinstance(value, str | int | float | bool | None):
        raise ConceptError(
            f"{path} is refused: it holds a {type(value).__name__}, not only tensors in plain containers"
        )
