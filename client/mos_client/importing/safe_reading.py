"""Read tensors from other people's files without running anything in them.

What a file is, is told by its first bytes, not by its name. safetensors holds only tensors. A file
of `torch.save` is a pickle, which `mos_common.safe_reading` reads without running it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from mos_common.errors import ConceptError
from mos_common.file_beginnings import kind_of_bytes
from mos_common.safe_reading import DAMAGED, check_plain, load_pickled

MAX_BYTES = 4 * 2**30
MAX_HEADER_BYTES = 100 * 2**20  # the format's own limit
MOST_TENSORS = 20_000  # the largest LoRA of XL, of all its layers, has some 5,000
ZIP = b"PK\x03\x04"


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
        if len(header) > MOST_TENSORS:
            raise ConceptError(f"{path} has {len(header):,} tensors, more than {MOST_TENSORS:,}: that is not a LoRA")
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
    content = load_pickled(path, ConceptError)
    check_plain(path, content, ConceptError)
    if isinstance(content, dict) and any(isinstance(name, int) for name in content) and "layer_structure" in content:
        raise ConceptError(f"{path} is a hypernetwork, not a LoRA: it cannot be imported")
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        more = " (cloneofsimo/lora wrote lists: convert them first)" if isinstance(content, list) else ""
        raise ConceptError(f"{path} holds a {type(content).__name__}; expected named tensors{more}")
    return content
