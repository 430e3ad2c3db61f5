"""Find pictures that would spoil a concept: duplicates, blurry and small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageFilter

from mos_client.pictures.folder import Picture
from mos_client.pictures.reading import open_picture

THUMBNAIL = 24
NEARLY_THE_SAME = 4.0  # of 255, mean over a thumbnail; a second photo of one thing differs more
SHARPNESS_SIDE = 256
MUCH_BLURRIER = 0.15  # of the folder's median sharpness
LAPLACIAN = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)


def remarks(pictures: Sequence[Picture], smallest: int) -> Iterator[tuple[Picture, str]]:
    """Yield (picture, remark) for duplicates, blurry pictures and those below `smallest`."""
    thumbnails, sharpnesses, sizes = [], [], []
    for picture in pictures:
        image = open_picture(picture.path)
        thumbnails.append(thumbnail(image))
        sharpnesses.append(sharpness(image))
        sizes.append(image.size)
    usual = median(sharpnesses)
    for i, picture in enumerate(pictures):
        for j in range(i):
            if float(np.abs(thumbnails[i] - thumbnails[j]).mean()) < NEARLY_THE_SAME:
                yield (
                    picture,
                    f"is nearly the same as {pictures[j].path.name}: it counts twice and teaches nothing new",
                )
                break
        if sharpnesses[i] < MUCH_BLURRIER * usual:
            yield picture, "is much blurrier than the others: the concept learns the blur"
        if min(sizes[i]) < smallest:
            width, height = sizes[i]
            yield picture, f"is {width} x {height}: enlarging it to {smallest} adds no detail"


def thumbnail(picture: Image.Image) -> Float[np.ndarray, "24 24 3"]:
    """Return a thumbnail, which two files of one picture share."""
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)


def sharpness(picture: Image.Image) -> float:
    """Return the variance of the Laplacian of the grey picture, at one size for all."""
    grey = picture.convert("L")
    grey.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.LANCZOS)
    return float(np.asarray(grey.filter(LAPLACIAN), dtype=np.float32)[1:-1, 1:-1].var()) if min(grey.size) > 2 else 0.0
