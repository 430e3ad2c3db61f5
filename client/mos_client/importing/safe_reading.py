"""Read tensors from other people's files without running anything in them.

What a file is, is told by its first bytes, not by its name. safetensors holds only tensors. A file
of `torch.save` is a zip with a pickle, a program that may call any function it names. Its
instructions are read, not run, until it is certain that they name only tensors and ordered
dictionaries. Then torch's own unpickler for weights runs them, which knows no other functions
either.
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
from safetensors.torch import load_file
from torch import Tensor

from mos_client.importing.file_kinds import kind_of_bytes
from mos_common.errors import ConceptError

MAX_BYTES = 4 * 2**30
MAX_PICKLE_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 100 * 2**20  # the format's own limit
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
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "UntypedStorage"),
        *(("torch", f"float8_{kind}") for kind in ("e4m3fn", "e5m2")),
        *(("torch", f"{kind}Storage") for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int")),
        *(("torch", f"{kind}Storage") for kind in ("Short", "Char", "Byte", "Bool")),
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
        with path.open("rb") as file:
            start = file.read(512)
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES:
            return _read_safetensors(path)
        if start.startswith(ZIP):
            return _read_torch(path), {}
    except OSError as error:
        raise ConceptError(f"{path} cannot be read: {error.strerror or error}") from error
    kind = kind_of_bytes(start)
    raise ConceptError(
        f"{path} {kind}"
        if kind
        else f"{path} is neither a safetensors file nor one that torch.save wrote: convert it to safetensors first"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Map the tensors into memory: pages are read when a layer needs them."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        needed, size = 8 + length + max(ends, default=0), path.stat().st_size
        if needed > size:
            raise ConceptError(f"{path} is cut short: {size:,} of {needed:,} bytes are there. Download it again")
        tensors: dict[str, Any] = dict(load_file(path))
    except (SafetensorError, *DAMAGED) as error:
        raise ConceptError(f"{path} is not a safetensors file that can be read: it is damaged or cut short") from error
    return tensors, {str(k): str(v) for k, v in (header.get("__metadata__") or {}).items()}


def _read_torch(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ConceptError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}: that is not a LoRA")
    if not zipfile.is_zipfile(path):
        raise ConceptError(f"{path} is cut short: its directory, at the end, is missing. Download it again")
    for module, name in _named_by_pickle(path):
        if (module, name) not in HARMLESS:
            raise ConceptError(f"{path} is refused: it would call {module}.{name}, which no file of weights needs")
    try:
        with path.open("rb") as file:  # given a path, torch looks at the name
            content = torch.load(file, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise ConceptError(f"{path} cannot be read ({type(error).__name__}): it is damaged") from error
    _check_plain(path, content)
    if isinstance(content, dict) and any(isinstance(name, int) for name in content) and "layer_structure" in content:
        raise ConceptError(f"{path} is a hypernetwork, not a LoRA: it cannot be imported")
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        more = " (cloneofsimo/lora wrote lists: convert them first)" if isinstance(content, list) else ""
        raise ConceptError(f"{path} holds a {type(content).__name__}; expected named tensors{more}")
    return content


def _named_by_pickle(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of all that the pickle would import or whose name it computes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".pkl")]
            if not entries:
                raise ConceptError(f"{path} is a zip archive, not a file of weights: unpack it first")
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
