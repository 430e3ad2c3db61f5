"""Shapes within a picture, boxes and masks, and the part of each cell that they cover.

Everything is an overlap of intervals. A picture of n cells a side divides [0, 1] into n intervals,
a mask of m pixels into m, and a soft edge averages over an interval around each cell. So covers are
exact at any size, also where pixels, cells and boxes do not divide evenly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from mos_common.errors import RequestError


@dataclass(frozen=True)
class Box:
    """A box in fractions of the picture, origin at the top left."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1):
            raise RequestError(f"box {self}: expected x0,y0,x1,y1 with x0 < x1 and y0 < y1, each from 0 to 1")

    def __str__(self) -> str:
        return ",".join(f"{side:g}" for side in (self.left, self.top, self.right, self.bottom))

    def cover(self, height: int, width: int) -> Float64[Tensor, "height width"]:
        """Return the part of each cell that lies in the box."""
        rows = _overlaps(*_cells(height), _number(self.top), _number(self.bottom)) * height
        columns = _overlaps(*_cells(width), _number(self.left), _number(self.right)) * width
        return rows @ columns.T


@dataclass(frozen=True)
class Mask:
    """A grey picture, 255 inside, stretched over the drawn one; `name` says where it comes from."""

    width: int
    height: int
    grey: bytes = field(repr=False)
    name: str = ""

    def __post_init__(self) -> None:
        assert len(self.grey) == self.width * self.height, f"{len(self.grey)} bytes for {self.width} x {self.height}"
        if not any(self.grey):
            raise RequestError(f"mask {self}: it is wholly black and marks nothing; paint the region white")

    def __str__(self) -> str:
        return self.name or f"{self.width} x {self.height}"

    def cover(self, height: int, width: int) -> Float64[Tensor, "height width"]:
        """Return the mean of the mask over each cell, 1 for white."""
        grey = torch.frombuffer(bytearray(self.grey), dtype=torch.uint8).reshape(self.height, self.width)
        rows = _overlaps(*_cells(height), *_cells(self.height)) * height
        columns = _overlaps(*_cells(width), *_cells(self.width)) * width
        return rows @ (grey.double() / 255) @ columns.T


Shape = Box | Mask


def softened(cover: Float64[Tensor, "height width"], edge: float) -> Float64[Tensor, "height width"]:
    """Return a cover whose straight edges are ramps, `edge` of the picture's shorter side wide.

    Each cell gets the mean of the square of that width around it. A ramp has its middle on the
    edge, so the ramps of two neighbours add up to 1. Beyond its border the picture goes on as it
    is there: a shape that reaches the border has no ramp along it.
    """
    height, width = cover.shape
    reach = edge * min(height, width) / 2
    if reach <= 0.5:  # within a cell
        return cover
    return _means_around(height, reach) @ cover @ _means_around(width, reach).T


def feature_maps(height: int, width: int) -> dict[int, tuple[int, int]]:
    """Return (height, width) of the feature maps of some latents, by their number of cells.

    Each level of the UNet halves both sides and rounds up, as its padded convolutions do. So a cell
    of a level stands for two by two of the level above it, at an odd end for one.
    """
    sizes = [(height, width)]
    while sizes[-1] != (1, 1):
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return {high * wide: (high, wide) for high, wide in sizes}


def _cells(count: int) -> tuple[Float64[Tensor, " count"], Float64[Tensor, " count"]]:
    """Return where the cells of a side begin and where they end."""
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    return edges[:-1], edges[1:]


def _number(value: float) -> Float64[Tensor, 1]:
    return torch.tensor([value], dtype=torch.float64)


def _overlaps(begins: Tensor, ends: Tensor, from_: Tensor, to: Tensor) -> Float64[Tensor, "intervals others"]:
    """Return the length that each of some intervals has in common with each of others."""
    lengths = torch.minimum(ends[:, None], to[None]) - torch.maximum(begins[:, None], from_[None])
    return lengths.clamp(min=0)


def _means_around(count: int, reach: float) -> Float64[Tensor, "count count"]:
    """Return the weights of all cells in the mean around each one, `reach` cells to both sides."""
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    begins, ends = _cells(count)
    begins[0], ends[-1] = -math.inf, math.inf
    return _overlaps(middles - reach / count, middles + reach / count, begins, ends) * count / (2 * reach)
