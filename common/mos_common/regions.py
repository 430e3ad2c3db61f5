"""The regions of a picture in which concepts are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mos_common.errors import RequestError


@dataclass(frozen=True)
class Region:
    """A box with its own prompt, in fractions of the picture, origin at the top left."""

    prompt: str
    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (0 <= self.left < self.right <= 1 and 0 <= self.top < self.bottom <= 1):
            box = f"{self.left},{self.top},{self.right},{self.bottom}"
            raise RequestError(
                f"region {box} of {self.prompt!r}: expected x0,y0,x1,y1 with x0 < x1 and y0 < y1, each from 0 to 1"
            )

    def cells(self, height: int, width: int) -> Bool[Tensor, "height width"]:
        """Return the cells of a feature map whose centres lie in the box.

        A box without any cell centre has the cell at its own centre.
        """
        y = (torch.arange(height) + 0.5) / height
        x = (torch.arange(width) + 0.5) / width
        inside = ((y >= self.top) & (y < self.bottom))[:, None] & ((x >= self.left) & (x < self.right))[None, :]
        if not inside.any():
            inside[int((self.top + self.bottom) / 2 * height), int((self.left + self.right) / 2 * width)] = True
        return inside


def parse_region(text: str) -> Region:
    """Parse a region from "PROMPT @ x0,y0,x1,y1".

    Raises:
        RequestError: the text has another form.

    """
    prompt, at, box = text.rpartition("@")
    try:
        left, top, right, bottom = (float(number) for number in box.split(","))
    except ValueError as error:
        raise RequestError(
            f'region {text!r}: expected "PROMPT @ x0,y0,x1,y1", for example "<cat> @ 0,0,0.5,1"'
        ) from error
    if not at or not prompt.strip():
        raise RequestError(f'region {text!r} has no prompt: expected "PROMPT @ x0,y0,x1,y1"')
    return Region(prompt.strip(), left, top, right, bottom)


def shares(regions: Sequence[Region], height: int, width: int) -> Float[Tensor, "regions cells"]:
    """Return the share of each region in each cell: 1 alone, 1/n where n overlap, 0 outside."""
    inside = torch.stack([region.cells(height, width).flatten() for region in regions]).float()
    return inside / inside.sum(dim=0).clamp(min=1)
