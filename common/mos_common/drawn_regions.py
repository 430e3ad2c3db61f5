"""Regions as a recipe tells of them: boxes in numbers, masks by their pixels, no file's name."""

from __future__ import annotations

import base64
import zlib
from typing import Annotated

from pydantic import ConfigDict, Field

from mos_common.errors import RequestError
from mos_common.json_models import StrictModel
from mos_common.prompt_grammar import MOST_CHARACTERS
from mos_common.regions import Region
from mos_common.shapes import Box, Mask, Shape

MOST_SIDE = 4096
_STRICT = ConfigDict(frozen=True, allow_inf_nan=False)
Prompt = Annotated[str, Field(max_length=MOST_CHARACTERS)]


class DrawnMask(StrictModel):
    """A mask: its grey values row by row, compressed by zlib, in base 64."""

    model_config = _STRICT
    width: Annotated[int, Field(ge=1, le=MOST_SIDE)]
    height: Annotated[int, Field(ge=1, le=MOST_SIDE)]
    grey: str

    def shape(self) -> Mask:
        """Return the mask.

        Raises:
            RequestError: it is damaged; never more is unpacked than its sides say.

        """
        count = self.width * self.height
        try:
            grey = zlib.decompressobj().decompress(base64.b64decode(self.grey, validate=True), count + 1)
        except (ValueError, zlib.error) as error:
            raise RequestError(f"a mask cannot be unpacked: {error}") from error
        if len(grey) != count:
            raise RequestError(f"a mask has not the {self.width} x {self.height} pixels that it says")
        return Mask(self.width, self.height, grey, "of the recipe")


class DrawnRegion(StrictModel):
    """A region, with one of `box` and `mask`; the other names mean what they do in `Region`."""

    model_config = _STRICT
    prompt: Prompt
    box: tuple[float, float, float, float] | None = None
    mask: DrawnMask | None = None
    negative: Prompt | None = None
    weight: float = 1.0
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    edge: float = 0.0
    keeps: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def region(self) -> Region:
        """Return the region.

        Raises:
            RequestError: it is none.

        """
        if (self.box is None) == (self.mask is None):
            raise RequestError(f"region {self.prompt[:60]!r} needs one of box and mask")
        shape: Shape = Box(*self.box) if self.box else self.mask.shape() if self.mask else Box(0, 0, 1, 1)
        return Region(shape=shape, **self.model_dump(exclude={"box", "mask"}))


def drawn_region(region: Region) -> DrawnRegion:
    """Return what a recipe says of a region."""
    told = {name: getattr(region, name) for name in DrawnRegion.model_fields if name not in ("box", "mask")}
    shape = region.shape
    if isinstance(shape, Box):
        return DrawnRegion(box=(shape.left, shape.top, shape.right, shape.bottom), **told)
    packed = base64.b64encode(zlib.compress(shape.grey, 9)).decode()
    return DrawnRegion(mask=DrawnMask(width=shape.width, height=shape.height, grey=packed), **told)
