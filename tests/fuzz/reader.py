"""What a reader is, and what several of them start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from mos_common.base_model import Base, load_base
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.errors import MosError
from reference.miniatures import write_miniature

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
# Between the parts of an input that is several things at once: a message, its tree, its objects.
SEPARATOR = b"\n\0--\0\n"


@dataclass(frozen=True)
class Reader:
    """A reader, the name of the file that it reads, and good contents of such a file.

    `refuses` are its own errors; anything else that is raised is a defect.
    """

    file: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path], object]
    refuses: type[Exception] | tuple[type[Exception], ...] = MosError


@cache
def miniature(folder: Path) -> Base:
    """Return a base on which files of strangers are tried."""
    return load_base(str(write_miniature(folder / "base")), device="cpu")


def fitting_concept(base: Base) -> Concept:
    """Return a concept that changes one layer of a base."""
    layer = next(layer for layer in base.layout.attention if layer.name == LAYER)
    pair = LowRank(torch.randn(2, layer.d_in) / 100, torch.randn(layer.d_out, 2) / 100, 2.0)
    words = tuple(torch.randn(base.layout.word_layers, 2, table.shape[1]) / 100 for table in base.token_tables)
    return Concept("<cat>", "cat", base.fingerprint, {LAYER: pair}, words, "a test", "CC0", "Alice")


def parts(data: bytes, count: int) -> list[bytes]:
    """Return the parts of an input, at least `count`."""
    found = data.split(SEPARATOR)
    return found + [b""] * (count - len(found))
