"""Safetensors files that are equal to the byte when their contents are.

The library writes the keys of the metadata in random order, so the header is written again in a
canonical order. It has the same length in every order, and the tensors stay where they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from safetensors.torch import save_file
from torch import Tensor

from mos_common.files import canonical_json, replacing_file

HASH = "modelspec.hash_sha256"
CHUNK = 2**20


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with a canonical header, atomically.

    The metadata get ModelSpec's `hash_sha256`: the digest of everything after the header.

    Raises:
        StateError: the file cannot be written.

    """
    with replacing_file(path) as beside:
        save_file(dict(tensors), beside, {**metadata, HASH: f"0x{'0' * 64}"})
        with beside.open("r+b") as file:
            _rewrite_header(file)


def _rewrite_header(file: BinaryIO) -> None:
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    header["__metadata__"][HASH] = f"0x{digest.hexdigest()}"
    written = canonical_json(header)
    assert len(written) <= size, "the order of keys does not change the length of the header"
    file.seek(8)
    file.write(written + b" " * (size - len(written)))
