"""Read tensors from other people's files without running anything in them.

safetensors holds only tensors. A file of `torch.save` is a zip with a pickle, a program that may
call any function it names. Its instructions are read, not run, until it is certain that they name
only tensors and ordered dictionaries. Then torch's own unpickler for weights runs them, which knows
no other functions either.

Checkpoints of base models are read tensor by tensor (`open_weights`). A checkpoint may also hold
its trainer's notes: the few classes that they name are replaced by one that does nothing.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mos_common.errors import BaseModelError, MosError
from mos_common.file_beginnings import kind_of_bytes

MAX_PICKLE_BYTES = 16 * 2**20
ZIP = b"PK\x03\x04"
BEGINNING = 512  # bytes that tell what a file is
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
NOTES = frozenset(
    {
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
        ("lightning.pytorch.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)
"""Names in PyTorch Lightning's notes within published checkpoints: callbacks, and best scores."""


class _Ignored:
    """Stand for a class or function of NOTES: it takes anything and does nothing."""

    def __init__(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Weights:
    """An open file of weights: the shape of each tensor, the metadata, and how to read a tensor.

    Tensors are mapped from the file, so what is not used costs no memory.
    """

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    read: Callable[[str], Tensor]


def load_pickled(path: Path, error: type[MosError], notes: frozenset[tuple[str, str]] = frozenset()) -> Any:
    """Return what a zip of `torch.save` holds, once it is certain that nothing in it is called.

    Classes of `notes` are replaced by one that does nothing.

    Raises:
        MosError: of the class `error`: it would call something, or is damaged.

    """
    _refuse_calls(path, error, notes)
    try:
        with torch.serialization.safe_globals([(_Ignored, f"{module}.{name}") for module, name in notes]):
            if path.suffix == ".safetensors":  # given a path, torch goes by the name
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=bool(notes))
    except DAMAGED as damage:
        raise error(f"{path} cannot be read ({type(damage).__name__}): it is damaged") from damage


def check_pickle(path: Path) -> None:
    """Check that a file of `torch.save` names nothing but tensors, before a library reads it.

    Its earlier form is no zip; the libraries read it by torch's unpickler for weights alone.

    Raises:
        BaseModelError: it would call something else, or is damaged.

    """
    if zipfile.is_zipfile(path):
        _refuse_calls(path, BaseModelError)


def open_weights(path: Path) -> Weights:
    """Open a checkpoint of a base model: safetensors, or the state that `torch.save` wrote.

    Raises:
        BaseModelError: it cannot be read, or holds anything except tensors and a trainer's notes.

    """
    try:
        with path.open("rb") as file:
            start = file.read(BEGINNING)
        if start.startswith(ZIP):
            return _open_torch(path)
        opened: Any = safe_open(path, "pt")
        names = list(opened.keys())
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
        return Weights(shapes, dict(opened.metadata() or {}), opened.get_tensor)
    except SafetensorError as error:
        neither = "is neither a whole safetensors file nor one that torch.save wrote: download it again, or convert it"
        raise BaseModelError(f"{path} {kind_of_bytes(start) or neither}") from error
    except OSError as error:
        raise BaseModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _open_torch(path: Path) -> Weights:
    if not zipfile.is_zipfile(path):
        raise BaseModelError(f"{path} is cut short: its directory, at the end, is missing. Download it again")
    content = load_pickled(path, BaseModelError, NOTES)
    while isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    check_plain(path, content, BaseModelError)
    held = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in held.items() if isinstance(value, Tensor)}
    return Weights({name: tuple(value.shape) for name, value in tensors.items()}, {}, tensors.__getitem__)


def _refuse_calls(path: Path, error: type[MosError], notes: frozenset[tuple[str, str]] = frozenset()) -> None:
    for module, name in _named_by_pickle(path, error):
        if (module, name) not in HARMLESS | notes:
            raise error(f"{path} is refused: it would call {module}.{name}, which no file of weights needs")


def _named_by_pickle(path: Path, error: type[MosError]) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of all that the pickle would import or whose name it computes."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".pkl")]
            if not entries:
                raise error(f"{path} is a zip archive, not a file of weights: unpack it first")
            unpacked = sum(entry.file_size for entry in archive.infolist())
            packed = any(entry.compress_type for entry in archive.infolist()) or unpacked > path.stat().st_size
            if len(entries) != 1 or packed:
                raise error(f"{path} is not laid out as torch.save does it: convert it to safetensors first")
            if entries[0].file_size > MAX_PICKLE_BYTES:
                raise error(f"{path} is refused: its pickle alone has {entries[0].file_size:,} bytes")
            program = archive.read(entries[0])
        with warnings.catch_warnings(action="ignore"):  # strange escapes in names that nobody runs
            operations = list(pickletools.genops(program))
        for opcode, argument, _ in operations:
            if opcode.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                yield module, name
            elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ", "NEWOBJ_EX"):
                yield "an object", f"by the instruction {opcode.name}"
    except (zipfile.BadZipFile, NotImplementedError, *DAMAGED) as damage:
        raise error(f"{path} cannot be read ({type(damage).__name__}): it is damaged") from damage


def check_plain(path: Path, value: object, error: type[MosError], depth: int = 0) -> None:
    """Check that a value is tensors in plain containers, each tensor no larger than its data.

    Raises:
        MosError: of the class `error`: it is not.

    """
    if depth > 8:
        raise error(f"{path} is refused: its containers are nested more than eight deep")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str | int):
                raise error(f"{path} is refused: a {type(key).__name__} cannot name a tensor")
            check_plain(path, inner, error, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(path, inner, error, depth + 1)
    elif isinstance(value, Tensor):
        # A view may repeat one number 10¹² times: tiny in the file, too large for memory once used.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise error(f"{path} is refused: a tensor of shape {tuple(value.shape)} is larger than its data")
    elif not isinstance(value, str | int | float | bool | None):
        raise error(f"{path} is refused: it holds a {type(value).__name__}, not only tensors in plain containers")
