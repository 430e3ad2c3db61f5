"""Read tensors from other people's files without running anything in them.

safetensors holds only tensors. A file of `torch.save` is a pickle, which `mos_common.safe_reading`
reads without running it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from mos_common.errors import ConceptError
from mos_common.safe_reading import check_plain, load_pickled

MAX_BYTES = 4 * 2**30
ZIP = b"PK\x03\x04"


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
    content = load_pickled(path, ConceptError)
    check_plain(path, content, ConceptError)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ConceptError(f"{path} holds a {type(content).__name__}; expected named tensors")
    return content
