"""Second moments: every batch that a layer reads is folded into G = Xᵀ X / m and dropped.

Memory holds the Grams alone, whatever the number of concepts, prompts and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from mos_common.digests import digest_of_tensors
from mos_common.errors import FusionError
from mos_common.files import write_atomically
from mos_common.layers import Layer
from mos_server.fusion.gram import gram
from mos_server.fusion.row_sink import RowSink

# Choose the rows of a batch (batch, rows, d_in) that count, each times the root of its weight.
Choice = Callable[[Float[Tensor, "batch rows d_in"]], Float[Tensor, "chosen d_in"]]
_DIGEST = "sha256"
_ROWS = "#rows"


@dataclass
class Moments:
    """Σ XᵀX and the number of rows (or sum of weights) of each distinct input (`Layer.reads`)."""

    sums: dict[str, Float[Tensor, "d_in d_in"]] = field(default_factory=dict)
    rows: dict[str, float] = field(default_factory=dict)

    def fresh(self) -> Moments:
        """Return empty moments."""
        return Moments()

    def add(self, reads: str, rows: Float[Tensor, "rows d_in"], count: float | None = None) -> None:
        """Fold rows into the sum of one input; `count` is their number or sum of weights."""
        if rows.shape[0] == 0:
            return
        self._fold(reads, gram(rows), float(rows.shape[0]) if count is None else count)

    def merge(self, other: Moments) -> None:
        """Add the sums of other moments."""
        for reads, total in other.sums.items():
            self._fold(reads, total, other.rows[reads])

    def _fold(self, reads: str, product: Float[Tensor, "d_in d_in"], count: float) -> None:
        """Add a product in place, so that thousands of batches do not fragment memory."""
        if reads in self.sums:
            self.sums[reads] += product
        else:
            self.sums[reads] = product
        self.rows[reads] = self.rows.get(reads, 0.0) + count

    def mean(self, reads: str) -> Float[Tensor, "d_in d_in"]:
        """Return G = Σ XᵀX / m of one input, in float64."""
        return self.sums[reads] / self.rows[reads]

    def finished(self) -> Moments:
        """Return the moments on the CPU, each sum exactly symmetric.

        Raises:
            FusionError: an input was not finite; the message names the first.

        """
        sums = {}
        for reads, total in self.sums.items():
            if not torch.isfinite(total).all():
                raise FusionError(f"the activations of {reads} are not finite")
            half = total.cpu().triu()
            sums[reads] = half + half.triu(1).T
        return Moments(sums, dict(self.rows))


@contextmanager
def recording(
    layers: Sequence[Layer], sink: RowSink, choice: Choice | None = None, count: float | None = None
) -> Iterator[None]:
    """Within: the rows of each distinct input of `layers` go into `sink`.

    `choice` selects the rows of a batch that count (default: all). `count` is the sum of their
    weights in one batch.
    """

    def fold(layer: Layer) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            batch = layer.rows(inputs[0].detach())
            sink.add(layer.reads, choice(batch) if choice else batch.flatten(0, 1), count)

        return hook

    first = {layer.reads: layer for layer in reversed(layers)}
    handles = [layer.module.register_forward_pre_hook(fold(layer)) for layer in first.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def write_moments(moments: Moments, path: Path) -> None:
    """Write finished moments: the upper half of each symmetric sum in float64, and a digest.

    What a crash damages is recorded again, so nothing waits for the disk.
    """
    tensors = {reads: total.flatten()[_upper(total.shape[0])] for reads, total in moments.sums.items()}
    tensors |= {f"{reads}{_ROWS}": torch.tensor([count], dtype=torch.float64) for reads, count in moments.rows.items()}
    write_atomically(path, save(tensors, {_DIGEST: digest_of_tensors(tensors)}), durably=False)


def read_moments(path: Path) -> Moments | None:
    """Return the moments of a file, or None if it is missing or damaged.

    The caller then records them again.
    """
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(_DIGEST)
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    if expected != digest_of_tensors(tensors):
        return None
    moments = Moments()
    for reads in sorted(name for name in tensors if not name.endswith(_ROWS)):
        moments.sums[reads] = _whole(tensors[reads])
        moments.rows[reads] = float(tensors[f"{reads}{_ROWS}"])
    return moments


def read_mean(path: Path, reads: str) -> Float[Tensor, "d_in d_in"]:
    """Return G of one input from a file that `read_moments` has read, without the other inputs.

    Raises:
        FusionError: the file has gone or was damaged meanwhile.

    """
    try:
        with safe_open(path, framework="pt") as file:
            return _whole(file.get_tensor(reads)) / float(file.get_tensor(f"{reads}{_ROWS}"))
    except (OSError, SafetensorError) as error:
        raise FusionError(f"{path} was lost or damaged while it was in use: fuse again") from error


def _whole(half: Float[Tensor, " entries"]) -> Float[Tensor, "d_in d_in"]:
    """Return the symmetric matrix of which `half` is the upper half."""
    return half[_place_in_half(round(((8 * half.numel() + 1) ** 0.5 - 1) / 2))]


# A model has few widths, and the places take longer to find than the entries to copy. (At XL's
# widest, 5120, they are 210 MB.)
@lru_cache(maxsize=4)
def _upper(size: int) -> Int[Tensor, " entries"]:
    """Return where the entries of the upper half are in a flat matrix."""
    row, column = torch.triu_indices(size, size)
    places: Tensor = row * size + column
    return places


@lru_cache(maxsize=4)
def _place_in_half(size: int) -> Int[Tensor, "size size"]:
    """Return where each entry of a symmetric matrix is in its upper half."""
    half = torch.empty(size * size, dtype=torch.int64)
    half[_upper(size)] = torch.arange(size * (size + 1) // 2)
    upper = half.view(size, size).triu()
    return upper + upper.triu(1).T
