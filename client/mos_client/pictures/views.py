"""How a picture is shown to the base: at which size, cut where, mirrored or not, and what of it is the concept.

Pictures keep their shape as far as the base's sizes allow: of all sizes that have about the base's number of pixels and are made of
whole cells, the one nearest in aspect ratio. A crop never cuts the concept off, and a mirrored picture has a mirrored caption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageOps

from mos_common.base_model import Base

LONGEST = 2.0  # sides; beyond twice as wide as high the base has seen next to nothing
SMALLEST_CROP = 0.8  # of what can be seen of the whole picture
MASK_KEPT = 0.9  # of the concept that a crop has to show


@dataclass(frozen=True)
class View:
    """One crop: what part of the picture (left, top, right, bottom, in pixels), at which size (width, height), mirrored or not."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    mirrored: bool = False

    def of(self, picture: Image.Image) -> Image.Image:
        """The picture as it is shown."""
        cut = picture.resize(self.size, Image.Resampling.LANCZOS, box=self.box)
        return ImageOps.mirror(cut) if self.mirrored else cut


def bucket_sizes(base: Base) -> list[tuple[int, int]]:
    """(width, height) of the shapes that a base draws well: whole cells, about the pixels it was trained on, at most 2 to 1."""
    unit, side = base.size_unit, base.picture_size
    sizes = []
    for width in range(unit, 2 * side + 1, unit):
        height = int(side * side / width // unit) * unit
        if height and 1 / LONGEST <= width / height <= LONGEST:
            sizes.append((width, height))
    return sizes


def bucket_for(picture: tuple[int, int], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The size nearest in aspect ratio; of two that are as near, the larger."""
    aspect = picture[0] / picture[1]
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1] / aspect)), -size[0] * size[1]))


def views_of(
    picture: Image.Image, mask: Image.Image | None, size: tuple[int, int], *, crops: int, mirror: bool, seed: str
) -> Iterator[View]:
    """The middle of the picture, `crops` - 1 more crops, and each of them mirrored if `mirror`. The same for the same `seed`."""
    random = Random(seed)
    boxes = [_middle(picture.size, size, 1.0, 0.5, 0.5)]
    for _ in range(crops - 1):
        scale = random.uniform(SMALLEST_CROP, 1.0)
        box = _middle(picture.size, size, scale, random.random(), random.random())
        boxes.append(box if _shows(mask, box) else boxes[0])
    for box in boxes:
        yield View(box, size)
        if mirror:
            yield View(box, size, mirrored=True)


def mask_cells(mask: Image.Image, view: View, cells: tuple[int, int]) -> np.ndarray:
    """(height, width) in [0, 1]: how much of each latent cell is the concept; `cells` is (width, height)."""
    share = view.of(mask).resize(cells, Image.Resampling.BOX)
    return np.asarray(share, dtype=np.float32) / 255


def _middle(
    picture: tuple[int, int], size: tuple[int, int], scale: float, x: float, y: float
) -> tuple[float, float, float, float]:
    """The largest part of the shape of `size`, times `scale`, whose slack is shared x : 1-x and y : 1-y."""
    fit = scale * min(picture[0] / size[0], picture[1] / size[1])
    width, height = size[0] * fit, size[1] * fit
    left, top = (picture[0] - width) * x, (picture[1] - height) * y
    return left, top, left + width, top + height


def _shows(mask: Image.Image | None, box: tuple[float, float, float, float]) -> bool:
    if mask is None:
        return True
    pixels = np.asarray(mask, dtype=np.float32)
    left, top, right, bottom = (round(edge) for edge in box)
    return float(pixels[top:bottom, left:right].sum()) >= MASK_KEPT * float(pixels.sum())
