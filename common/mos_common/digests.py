"""Digests of tensors, JSON, files, and the code that decides what is recorded.

All are sha256 as 64 hexadecimal digits. Equal values have equal digests on every machine,
regardless of the order of their parts. Nothing here imports torch before it is given a tensor,
because the server's network processes use this module too.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mos_common.files import canonical_json

if TYPE_CHECKING:
    from torch import Tensor

_READ_BYTES = 1 << 20
# Number formats by the names that safetensors gives them.
_FORMATS = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "uint8": "U8",
    "int64": "I64",
    "bool": "BOOL",
}


def digest_of_bytes(data: bytes) -> str:
    """Return the digest of bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the digest of a file, read in pieces of one megabyte.

    Raises:
        OSError: the file cannot be read.

    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def digest_of_json(value: object) -> str:
    """Return the digest of a JSON value, regardless of the order of its keys.

    Raises:
        TypeError, ValueError: JSON cannot represent the value (tensors, NaN, infinities).

    """
    return digest_of_bytes(canonical_json(value))


def digest_of_tensors(tensors: Mapping[str, Tensor], also: bytes = b"") -> str:
    """Return the digest of named tensors: sorted names, number formats, shapes and bits.

    The number format counts and the device does not: a rounded copy has another digest. `also` is
    further data that belongs to the tensors, such as the scales of low-rank factors.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{_FORMATS.get(kind, kind)}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bits_of(tensor))
    digest.update(also)
    return digest.hexdigest()


def bits_of(tensor: Tensor) -> memoryview:
    """Return the bits of a tensor on any device, in index order regardless of memory layout."""
    import torch

    laid_out = tensor.detach().cpu().contiguous()
    flat = laid_out.as_strided((laid_out.numel(),), (1,))  # `flatten` keeps odd strides of sizes of 1
    bits: memoryview = flat.view(torch.uint8).numpy().data
    return bits


@cache
def digest_of_code(modules: tuple[str, ...]) -> str:
    """Return the digest of the code of some modules, given their dotted names.

    It covers their syntax trees without docstrings: changing comments, docstrings or layout has no
    effect, any other change of the code has. It keys data that can be recorded again, never data
    that people keep, such as concepts and models.

    Raises:
        ModuleNotFoundError: a module does not exist or has no source.

    """
    return digest_of_json({name: code_of(_source_of(name)) for name in modules})


def modules_of(package: str) -> tuple[str, ...]:
    """Return the sorted dotted names of all modules of a package and its sub-packages.

    Raises:
        ModuleNotFoundError: the package does not exist.

    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package {package}")
    modules = pkgutil.walk_packages(spec.submodule_search_locations, f"{package}.")
    return tuple(sorted(module.name for module in modules))


def code_of(source: str) -> str:
    """Return Python source without its comments, docstrings and layout."""
    return ast.unparse(_WithoutText().visit(ast.parse(source)))


class _WithoutText(ast.NodeTransformer):
    """Removes docstrings of modules, classes, functions and attributes."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list) and not body and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        alone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if alone else node


def _source_of(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ModuleNotFoundError(f"no module {name} with its source")
    return Path(spec.origin).read_text(encoding="utf-8")
