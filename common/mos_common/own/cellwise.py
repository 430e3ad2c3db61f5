"""A spatial layer whose weights differ from cell to cell of the feature map.

Concept i's own change is ΔWi = Bi·Ai, the fused one Δ. In a cell of which concept i has the share
si, a layer of weight W answers its input x by

    y = (1 - s)·(W + Δ) x  +  s·W x  +  Σi si·Bi Ai x        s = Σi si

A cell is computed once: those with s = 0 by W + Δ, those with s = 1 by W and the low-rank pairs;
only on a soft edge by both. The pairs of all named concepts are one pair, padded with zeros to a
rank of a short list, so that shapes do not depend on who is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.layers import Group, Layer

Changes = Mapping[str, LowRank]
# Four concepts of rank 4, as tuned by default; beyond it doubles, so that few shapes exist.
LEAST_RANK = 16


@dataclass(frozen=True)
class Columns:
    """The columns of the one pair: the first and last of each slot's, and how many there are."""

    of_slot: tuple[range, ...]
    rank: int

    @classmethod
    def of(cls, own: Sequence[Changes]) -> Columns:
        """Return columns enough for every slot's largest rank, of a short list of ranks."""
        ranges, end = [], 0
        for changes in own:
            ranges.append(range(end, end := end + max((pair.rank for pair in changes.values()), default=0)))
        rank = LEAST_RANK
        while rank < end:
            rank *= 2
        return cls(tuple(ranges), rank)


@dataclass(frozen=True)
class Split:
    """The cells of a batch: which rows the base and the own changes compute, which the fused model.

    `own` and `fused` number the rows of (batch x cells); None stands for all rows. `whole` is the
    part of own changes in the rows `own`, `columns` its parts by column of the one pair, and `rest`
    what the fused model has of the rows `fused`. `soft`: some rows are in both.
    """

    own: Int[Tensor, " rows"] | None
    whole: Float[Tensor, "rows 1"]
    columns: Float[Tensor, "rows rank"]
    fused: Int[Tensor, " others"]
    rest: Float[Tensor, "others 1"]
    soft: bool


def split_cells(shares: Float[Tensor, "batch slots cells"], columns: Columns) -> Split | None:
    """Return who computes which cells; None if the fused model computes all of them."""
    flat = shares.transpose(1, 2).flatten(0, 1)
    whole = flat.sum(dim=1, keepdim=True)
    # Shares of overlapping regions are thirds and the like, whose sum is 1 only to rounding.
    rest = torch.where(whole > 1 - 1e-6, torch.zeros_like(whole), 1 - whole)
    own, fused = (whole[:, 0] > 0).nonzero()[:, 0], (rest[:, 0] > 0).nonzero()[:, 0]
    if len(own) == 0:
        return None
    by_column = flat.new_zeros(len(flat), columns.rank)
    for slot, of_slot in enumerate(columns.of_slot):
        by_column[:, of_slot.start : of_slot.stop] = flat[:, slot, None]
    soft = len(own) + len(fused) > len(flat)
    return Split(None if len(own) == len(flat) else own, whole[own], by_column[own], fused, rest[fused], soft)


class CellShares:
    """The shares of the named concepts in the cells of every feature map, for one drawing.

    `shares_of(cells)` computes those of a feature map of so many cells; each is computed once until
    `changed` says that they are others from now on.
    """

    def __init__(self, shares_of: Callable[[int], Float[Tensor, "batch slots cells"]], columns: Columns) -> None:
        self.columns = columns
        self._shares_of = shares_of
        self._splits: dict[int, Split | None] = {}

    def split(self, cells: int) -> Split | None:
        """Return who computes which cells of a feature map."""
        if cells not in self._splits:
            self._splits[cells] = split_cells(self._shares_of(cells), self.columns)
        return self._splits[cells]

    def changed(self) -> None:
        """Forget what was computed: the next pass asks again."""
        self._splits.clear()


class CellwiseLayer(nn.Module):
    """Stand for one spatial layer of the UNet while a picture is drawn with own changes.

    `fused` is the layer as it is, with the fused change in its weight; `weight` is the base's.
    """

    weight: Tensor
    A: Tensor
    B: Tensor

    def __init__(self, fused: nn.Linear | nn.Conv2d, weight: Tensor, pair: LowRank, cells: CellShares):
        super().__init__()
        self.fused, self.cells = fused, cells
        for name, value in (("weight", weight.flatten(1)), ("A", pair.A), ("B", pair.B)):
            self.register_buffer(name, value, persistent=False)  # it goes where the module goes

    # Which rows there are differs from drawing to drawing, and within one: compiled, it would be
    # compiled again and again. What is around it is compiled.
    @torch.compiler.disable
    def forward(self, read: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return the layer's output, each cell by the weights that hold there."""
        pixels = isinstance(self.fused, nn.Conv2d)
        rows = read.flatten(2).transpose(1, 2) if pixels else read
        split = self.cells.split(rows.shape[1])
        if split is None:
            out: Tensor = self.fused(read)
            return out
        batch, cells, width = rows.shape
        answered = self._answered(rows.reshape(-1, width), split).reshape(batch, cells, -1)
        return answered.transpose(1, 2).reshape(batch, -1, *read.shape[2:]) if pixels else answered

    def _answered(self, x: Float[Tensor, "cells d_in"], split: Split) -> Float[Tensor, "cells d_out"]:
        mine = x if split.own is None else x[split.own]
        own = linear(mine, self.weight, self.fused.bias)
        if split.soft:
            own = own * split.whole.to(x)
        own = own.addmm(linear(mine, self.A) * split.columns.to(x), self.B.T)
        if len(split.fused) == 0:
            return own
        others = linear(x[split.fused], self.fused.weight.flatten(1), self.fused.bias)
        out = x.new_zeros(len(x), own.shape[1])
        rows = torch.arange(len(x), device=x.device) if split.own is None else split.own
        if split.soft:
            return out.index_add_(0, rows, own).index_add_(0, split.fused, others * split.rest.to(x))
        return out.index_copy_(0, rows, own).index_copy_(0, split.fused, others)


def mapped_layers(base: Base) -> dict[str, Layer]:
    """Return the spatial layers that read a feature map, by name: what can differ by cell.

    The others read one row for a whole picture, such as its time step.
    """
    transformers = {cross.name.partition(".transformer_blocks.")[0] for cross in base.layout.cross_attentions}
    return {
        layer.name: layer
        for layer in base.layout.by_group[Group.SPATIAL]
        if isinstance(layer.module, nn.Conv2d)
        or any(layer.name.startswith(f"unet.{transformer}.") for transformer in transformers)
    }


def stacked(layer: Layer, own: Sequence[Changes], columns: Columns) -> LowRank:
    """Return all concepts' pairs of a layer as one, with zeros in the columns that nobody fills."""
    weight = layer.module.weight
    A, B = weight.new_zeros(columns.rank, layer.d_in), weight.new_zeros(layer.d_out, columns.rank)
    for changes, of_slot in zip(own, columns.of_slot, strict=True):
        if (pair := changes.get(layer.name)) is not None:
            filled = slice(of_slot.start, of_slot.start + pair.rank)
            A[filled], B[:, filled] = pair.A.to(A), (pair.scale * pair.B.float()).to(B)
    return LowRank(A, B, float(columns.rank))


@contextmanager
def cellwise(
    base: Base, weights: Mapping[str, Tensor], own: Sequence[Changes], fused: Changes, cells: CellShares
) -> Iterator[None]:
    """Let every spatial layer that some change concerns answer cell by cell; restore it afterwards.

    `weights` are the base's own of these layers, `own` the changes of each slot.
    """
    concerned = {*fused, *(name for changes in own for name in changes)}
    layers = {name: layer for name, layer in mapped_layers(base).items() if name in concerned}
    try:
        for name, layer in layers.items():
            pair = stacked(layer, own, cells.columns)
            standing = CellwiseLayer(layer.module, weights[name], pair, cells)
            base.unet.set_submodule(name.removeprefix("unet."), standing)
        yield
    finally:
        for name, layer in layers.items():
            base.unet.set_submodule(name.removeprefix("unet."), layer.module)
