"""The low-rank pair of ED-LoRA, and how to attach it to a model temporarily.

A concept changes a linear layer's weight W by ΔW = s·B·A with s = alpha/rank (PEFT's convention;
ours writes alpha = rank).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mos_common.base_model import Base
from mos_common.errors import ConceptError
from mos_common.layers import Layer


@dataclass(frozen=True)
class LowRank:
    """The low-rank change of one layer: A (r x d_in), B (d_out x r) and alpha."""

    A: Float[Tensor, "rank d_in"]
    B: Float[Tensor, "d_out rank"]
    alpha: float

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.A.shape[0]

    @property
    def scale(self) -> float:
        """The factor s = alpha/rank before B·A."""
        return self.alpha / max(self.rank, 1)

    def change(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "d_out d_in"]:
        """ΔW = s·B·A, multiplied in `dtype`."""
        return self.scale * (self.B.to(dtype) @ self.A.to(dtype))

    def balanced(self) -> LowRank:
        """Return the same change with |A| = |B| column by column, and alpha = rank.

        This minimises the error of rounding to float16. Columns that are already balanced to
        within 1 % are kept to the bit, so a concept that is read and written again is the same
        file.
        """
        A, B = self.A.double(), self.scale * self.B.double()
        ratio = (B.norm(dim=0) / A.norm(dim=1)).sqrt()
        ratio = torch.where(
            torch.isfinite(ratio) & (ratio > 0) & ((ratio - 1).abs() > 0.01), ratio, torch.ones_like(ratio)
        )
        return LowRank((A * ratio[:, None]).float(), (B / ratio).float(), float(max(self.rank, 1)))


@contextmanager
def attached(base: Base, changes: Mapping[str, LowRank]) -> Iterator[None]:
    """Replace the weight W of every named layer by W + ΔW; restore the same W afterwards.

    Weights are exchanged by pointer: nothing is subtracted, so nothing is lost to rounding.

    Raises:
        ConceptError: a change names a layer that the base does not have.

    """
    known = base.layout.by_name
    if unknown := changes.keys() - known.keys():
        raise ConceptError(
            f"{min(unknown)} is not a layer of {base.name}: use the base model that the change was made for"
        )
    layers = {name: known[name] for name in changes}
    originals = {name: layer.module.weight for name, layer in layers.items()}
    try:
        # Ordinary tensors, in inference mode too: a compiled model is compiled for the kind it saw.
        with torch.inference_mode(False):
            for name, layer in layers.items():
                layer.module.weight = nn.Parameter(_changed(layer, changes[name]), requires_grad=False)
        yield
    finally:
        for name, layer in layers.items():
            layer.module.weight = originals[name]


def _changed(layer: Layer, pair: LowRank) -> Tensor:
    weight = layer.module.weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    change = LowRank(pair.A.to(weight.device), pair.B.to(weight.device), pair.alpha).change(wide)
    return (weight.to(wide) + change.view(weight.shape)).to(weight.dtype)
