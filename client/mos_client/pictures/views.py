"""Choose how the base sees a picture: its size, its crop, mirrored or not, and its mask.

A picture goes to the size nearest to its aspect ratio, among sizes of about the base's number of
pixels in whole cells. A crop never cuts off the concept, and a mirrored picture has a mirrored
caption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageOps

from mos_common.base_model import Base

LONGEST = 2.0  # aspect ratio; the base has hardly seen pictures beyond it
SMALLEST_CROP = 0.8  # of the side of the largest crop
MASK_KEPT = 0.9  # share of the concept that a crop must show


@dataclass(frozen=True)
class View:
    """One crop: `box` (left, top, right, bottom) in pixels, resized to `size` (width, height)."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    mirrored: bool = False

    def of(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the base sees it."""
        cut = picture.resize(self.size, Image.Resampling.LANCZOS, box=self.box)
        return ImageOps.mirror(cut) if self.mirrored else cut


def bucket_sizes(base: Base) -> list[tuple[int, int]]:
    """Return the sizes (width, height) that a base draws well.

    They have whole cells, about the number of pixels it was trained on, and at most 2 to 1.
    """
    unit, side = base.size_unit, base.picture_size
    sizes = []
    for width in range(unit, 2 * side + 1, unit):
        height = int(side * side / width // unit) * unit
        if height and 1 / LONGEST <= width / height <= LONGEST:
            sizes.append((width, height))
    return sizes


def bucket_for(picture: tuple[int, int], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the size nearest in aspect ratio; of two equally near, the larger."""
    aspect = picture[0] / picture[1]
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1] / aspect)), -size[0] * size[1]))


def views_of(
    picture: Image.Image, mask: Image.Image | None, size: tuple[int, int], *, crops: int, mirror: bool, seed: str
) -> Iterator[View]:
    """Yield the middle and `crops` - 1 random crops, each also mirrored if `mirror`."""
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
    """Return the share of each latent cell that the mask covers, (height, width) in [0, 1].

    `cells` is (width, height).
    """
    share = view.of(mask).resize(cells, Image.Resampling.BOX)
    return np.asarray(share, dtype=np.float32) / 255


def _middle(
    picture: tuple[int, int], size: tuple[int, int], scale: float, x: float, y: float
) -> tuple[float, float, float, float]:
    """Return the largest box of the shape of `size`, times `scale`, at (x, y) of the free space."""
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
