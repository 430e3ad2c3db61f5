"""One condition of a drawing: an adapter, its picture, and how strongly it acts where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mos_common.control.adapters import Adapter
from mos_common.control.drawn import DrawnControl
from mos_common.errors import RequestError
from mos_common.regions import Region


@dataclass(frozen=True)
class Control:
    """A picture that a drawing follows, as an adapter reads it.

    It acts with `weight`, from `start` to `end` of the steps, each a share of them. With a
    `region`, the number from 0 of one of the drawing's, it acts by that region's share of each
    cell, and only while the region holds. `told` is what a recipe says of it, where it was read
    from files.
    """

    adapter: Adapter
    picture: Image.Image
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    region: int | None = None
    told: DrawnControl | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise self._refused(f"weight {self.weight:g}", "a number of at least 0")
        if not 0 <= self.start < self.end <= 1:
            raise self._refused(f"start {self.start:g} and end {self.end:g}", "shares of the steps, 0 to 1, in order")
        if self.region is not None and self.adapter.pools:
            raise self._refused("a region", "none: this adapter pools its picture, so it acts everywhere or not at all")

    def _refused(self, found: str, expected: str) -> RequestError:
        return RequestError(f"control {self.adapter.name}: {found}: expected {expected}")

    def acts(self, progress: float) -> bool:
        """Return whether it acts in a step before which `progress` of all steps were done."""
        return self.weight > 0 and self.start <= progress < self.end

    def pixels(self, height: int, width: int) -> Float[Tensor, "1 channels height width"]:
        """Return the picture in [0, 1] and in the size of a drawing, resized as diffusers does."""
        image = self.picture.convert("L" if self.adapter.channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        array = np.asarray(image, np.float32).reshape(height, width, -1) / 255
        return torch.from_numpy(array).permute(2, 0, 1)[None]


def check_controls(controls: Sequence[Control], regions: Sequence[Region], height: int, width: int) -> None:
    """Check that conditions fit a drawing of a size in pixels, with these regions.

    Raises:
        RequestError: a condition is for a region that is not there, or cannot read the size.

    """
    for control in controls:
        control.adapter.check_size(height, width)
        if control.region is not None and not 0 <= control.region < len(regions):
            known = f"1 to {len(regions)}" if regions else "none"
            raise RequestError(f"control {control.adapter.name}: no region {control.region + 1}; known: {known}")
