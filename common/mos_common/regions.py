"""The regions of a picture in which concepts are drawn, and the share of each in every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mos_common.aspect import same_shape
from mos_common.errors import RequestError
from mos_common.shapes import Mask, Shape, feature_maps, softened


@dataclass(frozen=True)
class Region:
    """A part of the picture with its own prompt.

    `negative` is what not to draw in it; None is the picture's own negative prompt. It holds from
    `start` to `end` of the steps, each a share of them; before and after, the picture's prompt
    holds everywhere. It goes before regions of lower `priority`; where it overlaps others of the
    same one, it counts `weight`. `edge` is the width of its soft edge, as a share of the picture's
    shorter side, and `keeps` the share of the picture's prompt that it keeps.
    """

    prompt: str
    shape: Shape
    negative: str | None = None
    weight: float = 1.0
    priority: int = 0
    edge: float = 0.0
    keeps: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise RequestError("a region has no prompt: say what to draw in it")
        if not 0 < self.weight < math.inf:
            raise self._refused(f"weight {self.weight:g}", "a number above 0")
        for name, value in (("edge", self.edge), ("keeps", self.keeps)):
            if not 0 <= value <= 1:
                raise self._refused(f"{name} {value:g}", "a share from 0 to 1")
        if not 0 <= self.start < self.end <= 1:
            raise self._refused(f"start {self.start:g} and end {self.end:g}", "shares of the steps, 0 to 1, in order")

    def _refused(self, found: str, expected: str) -> RequestError:
        return RequestError(f"region {self.prompt!r}: {found}: expected {expected}")

    def holds(self, progress: float) -> bool:
        """Return whether it holds in a step before which `progress` of all steps were done."""
        return self.start <= progress < self.end

    def cover(self, height: int, width: int) -> Float[Tensor, "height width"]:
        """Return the part of each cell that it covers, its soft edge included."""
        return softened(self.shape.cover(height, width), self.edge).float().clamp(0, 1)


def check_masks(regions: Sequence[Region], height: int, width: int) -> None:
    """Check that no mask would be stretched.

    Raises:
        RequestError: a mask has another shape than the picture that is drawn.

    """
    for mask in (region.shape for region in regions if isinstance(region.shape, Mask)):
        if not same_shape((mask.width, mask.height), (width, height)):
            raise RequestError(
                f"mask {mask} is {mask.width} x {mask.height}, the picture {width} x {height}: give it the shape of "
                "the picture, or the picture another --width and --height"
            )


def shares(regions: Sequence[Region], height: int, width: int) -> Float[Tensor, "regions height width"]:
    """Return the share of each region in each cell; the picture's prompt has the rest.

    Region i covers mi of a cell, counts wi and keeps ki. Regions are placed by priority, the
    highest first, and those of priority P get no more than the rest r that is left there:

        si = (1 - ki) · min(r, Σj∈P mj) · wi mi / Σj∈P wj mj,   then   r ← r - min(r, Σj∈P mj)
    """
    m = torch.stack([region.cover(height, width) for region in regions])
    w = torch.tensor([region.weight for region in regions])[:, None, None]
    k = torch.tensor([region.keeps for region in regions])[:, None, None]
    priority = torch.tensor([region.priority for region in regions])
    s, r = torch.zeros_like(m), torch.ones_like(m[0])
    for P in sorted({region.priority for region in regions}, reverse=True):
        of = priority == P
        covered = torch.minimum(r, m[of].sum(dim=0))
        weighed = w[of] * m[of]
        s[of] = (1 - k[of]) * covered * weighed / weighed.sum(dim=0).clamp(min=torch.finfo(m.dtype).tiny)
        r = r - covered
    return s


class RegionShares:
    """The shares of a picture's regions on all feature maps, in every step; each computed once.

    Whoever acts by region asks here: attention, and hooks on layers that read a feature map's
    cells as rows. `size` is the (height, width) of the latents, where shares are decided; a cell of
    a smaller map has the mean of the cells that it stands for.
    """

    def __init__(self, regions: Sequence[Region], size: tuple[int, int], device: torch.device) -> None:
        self._regions, self._size, self._device = tuple(regions), size, device
        self._maps = feature_maps(*size)
        self._kept: dict[tuple[tuple[int, ...], int], Float[Tensor, "active cells"]] = {}

    def active(self, progress: float) -> tuple[int, ...]:
        """Return the numbers of the regions that hold in the step after `progress` of all steps."""
        return tuple(i for i, region in enumerate(self._regions) if region.holds(progress))

    def at(self, progress: float, cells: int) -> Float[Tensor, "active cells"]:
        """Return the share of each active region in each cell of the map of so many cells."""
        key = (self.active(progress), cells)
        if key not in self._kept:
            assert cells in self._maps, f"{cells} cells: latents of {self._size} have maps of {self._maps}"
            kept = self._pooled([self._regions[i] for i in key[0]], self._maps[cells])
            self._kept[key] = kept.to(self._device)
        return self._kept[key]

    def _pooled(self, regions: Sequence[Region], size: tuple[int, int]) -> Float[Tensor, "active cells"]:
        if not regions:
            return torch.zeros(0, size[0] * size[1])
        # An odd end has cells that stand for fewer: the mean is over those within the picture.
        side = 2 ** list(self._maps.values()).index(size)
        placed = shares(regions, *self._size)
        return avg_pool2d(placed, side, ceil_mode=True, count_include_pad=False).flatten(1)
