"""Second moments: every batch that a layer reads is folded into G = Xᵀ X / m and dropped.

Memory is that of the Grams, whatever the number of concepts, prompts and steps. Products are float32 (without TF32), sums float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from mos_common.errors import FusionError
from mos_common.files import write_atomically
from mos_common.layers import Layer


@dataclass
class Moments:
    """Σ XᵀX and the number of rows, for each distinct input (`Layer.reads`)."""

    sums: dict[str, Float[Tensor, "d_in d_in"]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def add(self, reads: str, rows: Float[Tensor, "rows d_in"]) -> None:
        """Fold rows into the sum of one input.

        Raises:
            FusionError: a row is not finite; the message names the input.

        """
        if rows.shape[0] == 0:
            return
        with torch.autocast(rows.device.type, enabled=False), _float32_products():
            product = (rows.float().T @ rows.float()).double().cpu()
        if not torch.isfinite(product).all():
            raise FusionError(f"the activations of {reads} are not finite")
        self.sums[reads] = self.sums[reads] + product if reads in self.sums else product
        self.rows[reads] = self.rows.get(reads, 0) + rows.shape[0]

    def mean(self, reads: str) -> Float[Tensor, "d_in d_in"]:
        """G = Σ XᵀX / m of one input, float64."""
        return self.sums[reads] / self.rows[reads]


@contextmanager
def recording(layers: Sequence[Layer], moments: Moments, chosen: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Within: what each distinct input of `layers` reads goes into `moments`.

    `chosen["rows"]`, where given, selects rows of the batch: a mask (batch, positions) or a slice of the batch; it may be changed
    between forward passes.
    """

    def fold(reads: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0]
            moments.add(reads, (rows[chosen["rows"]] if chosen else rows).detach().flatten(0, -2))

        return hook

    first = {layer.reads: layer for layer in reversed(layers)}
    handles = [layer.module.register_forward_pre_hook(fold(reads)) for reads, layer in first.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def write_moments(moments: Moments, path: Path) -> None:
    """Keep moments on disk: the upper half of each symmetric sum, float64."""
    tensors = {reads: total[_upper(total.shape[0])].contiguous() for reads, total in sorted(moments.sums.items())}
    tensors |= {f"{reads}#rows": torch.tensor([moments.rows[reads]]) for reads in moments.sums}
    write_atomically(path, save(tensors))


def read_moments(path: Path) -> Moments | None:
    """Moments kept on disk, or None where there are none or the file is damaged (they are then recorded again)."""
    try:
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    moments = Moments()
    for reads, half in tensors.items():
        if reads.endswith("#rows"):
            continue
        size = round(((8 * half.numel() + 1) ** 0.5 - 1) / 2)
        total = torch.zeros(size, size, dtype=torch.float64)
        total[_upper(size)] = half
        moments.sums[reads] = total + total.triu(1).T
        moments.rows[reads] = int(tensors[f"{reads}#rows"])
    return moments


def _upper(size: int) -> tuple[Tensor, Tensor]:
    row, column = torch.triu_indices(size, size)
    return row, column


@contextmanager
def _float32_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
