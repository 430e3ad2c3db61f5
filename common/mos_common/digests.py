"""Digests: of tensors, of JSON, of files, and of the code that decides what is recorded.

All are sha256 as 64 hexadecimal digits. Equal values have equal digests on every machine, whatever order their parts come in.
Nothing here imports torch until tensors are given: the server's network processes use this module too.
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
    """Return the digest of some bytes."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the digest of a file, which is read in pieces of a megabyte.

    Raises:
        OSError: the file cannot be read.

    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def digest_of_json(value: object) -> str:
    """Return the digest of anything that JSON can say, whatever the order of its keys.

    Raises:
        TypeError, ValueError: JSON cannot say it (tensors, NaN, infinities).

    """
    return digest_of_bytes(canonical_json(value))


def digest_of_tensors(tensors: Mapping[str, Tensor], also: bytes = b"") -> str:
    """Return the digest of named tensors of any shape: names in order, number formats, shapes and bits.

    Tensors count in the format they have, on whatever device: a rounded copy has another digest. `also` is what else belongs
    to them, such as the scales that go with factors.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{_FORMATS.get(kind, kind)}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bits_of(tensor))
    digest.update(also)
    return digest.hexdigest()


def bits_of(tensor: Tensor) -> memoryview:
    """Return the bits of a tensor on any device, in the order of its indices whatever the order in memory."""
    import torch

    laid_out = tensor.detach().cpu().contiguous()
    flat = laid_out.as_strided((laid_out.numel(),), (1,))  # `flatten` keeps an odd stride where a size is 1
    bits: memoryview = flat.view(torch.uint8).numpy().data
    return bits


@cache
def digest_of_code(modules: tuple[str, ...]) -> str:
    """Return the digest of what some modules do, by their dotted names.

    It is taken over their syntax trees without docstrings: comments, docstrings and layout change nothing, any other change
    of the code does. It keys what is recorded and can be recorded anew, never what people keep, such as concepts and models.

    Raises:
        ModuleNotFoundError: there is no such module, or it has no source.

    """
    return digest_of_json({name: code_of(_source_of(name)) for name in modules})


def modules_of(package: str) -> tuple[str, ...]:
    """Return the dotted names of every module of a package, those of its sub-packages included, in order.

    Raises:
        ModuleNotFoundError: there is no such package.

    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package {package}")
    found = pkgutil.walk_packages(spec.submodule_search_locations, f"{package}.")
    return tuple(sorted(module.name for module in found))


def code_of(source: str) -> str:
    """Return Python source without its comments, docstrings and layout."""
    return ast.unparse(_WithoutText().visit(ast.parse(source)))


class _WithoutText(ast.NodeTransformer):
    """Removes strings that stand alone: docstrings of modules, classes, functions and attributes."""

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
