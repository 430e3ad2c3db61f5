"""The low-rank pair of ED-LoRA, and how to attach it to a model temporarily.

A concept changes a linear layer's weight W by ΔW = s·B·A with s = alpha/rank (PEFT's convention;
ours writes alpha = rank).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mos_common.base_model import Base
from mos_common.errors import ConceptError
from mos_common.layers import Layer

_SAMPLED = 64


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


class MergedWeights:
    """The weights W + ΔW of a model, kept from one drawing to the next.

    They are computed again where W or the change is another one, into the same memory, which is
    faster than new memory.
    """

    def __init__(self) -> None:
        self._kept: dict[str, _Merged] = {}

    def of(self, layers: Mapping[str, Layer], changes: Mapping[str, LowRank]) -> dict[str, nn.Parameter]:
        """Return W + ΔW of every layer. They hold until the next call."""
        # Ordinary tensors, in inference mode too: a compiled model is compiled for the kind it saw.
        with torch.inference_mode(False), torch.no_grad():
            return {name: self._of(name, layer.module.weight, changes[name]) for name, layer in layers.items()}

    def _of(self, name: str, weight: Tensor, pair: LowRank) -> nn.Parameter:
        kept, sample = self._kept.get(name), _sample(weight)
        alike = kept is not None and _are_alike(kept.merged, weight)
        if kept is not None and alike and kept.pair is pair and torch.equal(kept.sample, sample):
            return kept.merged
        out = kept.merged if kept is not None and alike else None
        if out is None:
            out = nn.Parameter(torch.empty_like(weight), requires_grad=False)
        _merge(weight, pair, out)
        self._kept[name] = _Merged(sample, pair, out)
        return out


class _Merged(NamedTuple):
    sample: Tensor
    pair: LowRank
    merged: nn.Parameter


def _sample(weight: Tensor) -> Tensor:
    """Return evenly spaced values of W, which change when anything is merged into all of it."""
    values = weight.detach().reshape(-1)
    return values[:: max(1, len(values) // _SAMPLED)].clone()


@contextmanager
def attached(base: Base, changes: Mapping[str, LowRank], merged: MergedWeights | None = None) -> Iterator[None]:
    """Replace the weight W of every named layer by W + ΔW; restore the same W afterwards.

    Weights are exchanged by pointer: nothing is subtracted, so nothing is lost to rounding. With
    `merged`, W + ΔW is kept there for the next time.

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
        for name, weight in (merged or MergedWeights()).of(layers, changes).items():
            layers[name].module.weight = weight
        yield
    finally:
        for name, layer in layers.items():
            layer.module.weight = originals[name]


def _are_alike(one: Tensor, other: Tensor) -> bool:
    return all(getattr(one, of) == getattr(other, of) for of in ("shape", "dtype", "device"))


def _merge(weight: Tensor, pair: LowRank, out: Tensor) -> None:
    """Write W + s·B·A into `out`, computed in float32 or wider."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    A, B = pair.A.to(weight.device, wide), pair.B.to(weight.device, wide)
    rows = weight.flatten(1).to(wide)
    if out.dtype == wide and out.is_contiguous():
        torch.addmm(rows, B, A, alpha=pair.scale, out=out.view(rows.shape))
    else:
        out.copy_(torch.addmm(rows, B, A, alpha=pair.scale).view(out.shape))
