"""Regions as people give them: texts of `--region`, masks, and painted pictures.

A painted picture has a colour for each region. Brushes and JPEG blend colours at edges, so a pixel
belongs to the nearest colour that some region has, unless it is far from all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from mos_client.pictures.reading import SUFFIXES, read_any_mask, read_picture
from mos_common.errors import PicturesError, RequestError
from mos_common.files import is_file
from mos_common.region_texts import bounded, box_of, mask_of, split_region
from mos_common.regions import Region
from mos_common.shapes import Mask, Shape

FORMS = '"PROMPT @ x0,y0,x1,y1" in fractions of the picture, "PROMPT @ mask.png" or, with --layout, "PROMPT @ COLOUR"'
FAR = 64  # of 255 in one channel: further away, a colour is another one


@dataclass(frozen=True)
class Layout:
    """A painted picture in which each region has a colour."""

    file: Path
    pixels: np.ndarray

    def masks(self, colours: Sequence[str]) -> list[Mask]:
        """Return the mask of each colour.

        Raises:
            RequestError: a colour is none, or nothing is painted in it.

        """
        named = list(dict.fromkeys(_rgb(colour) for colour in colours))
        nearest, least = np.zeros(self.pixels.shape[:2], int), np.full(self.pixels.shape[:2], FAR, np.int16)
        for number, rgb in enumerate(named, start=1):
            distance = np.abs(self.pixels.astype(np.int16) - np.array(rgb, np.int16)).max(axis=2)
            nearer = distance < least
            nearest[nearer], least[nearer] = number, distance[nearer]
        return [self._mask(nearest == named.index(_rgb(colour)) + 1, colour) for colour in colours]

    def _mask(self, inside: np.ndarray, colour: str) -> Mask:
        if not inside.any():
            raise RequestError(f"nothing in {self.file} is painted {colour}; it has {', '.join(self._main_colours())}")
        height, width = inside.shape
        return Mask(width, height, (inside * np.uint8(255)).tobytes(), f"{self.file} ({colour})")

    def _main_colours(self) -> list[str]:
        packed = self.pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        colours, counts = np.unique(packed, return_counts=True)
        return [f"#{int(colours[i]):06x}" for i in np.argsort(-counts, kind="stable")[:6]]


def read_layout(file: Path) -> Layout:
    """Read a painted picture.

    Raises:
        RequestError: there is none.
        PicturesError: it cannot be read.

    """
    if not is_file(file):
        raise RequestError(f"no painted picture at {file}")
    return Layout(file, np.asarray(bounded(read_picture(file).picture, Image.Resampling.NEAREST)))


def read_shape(file: Path) -> Mask:
    """Read the mask of a region: white inside, grey at soft edges.

    Raises:
        RequestError: there is none, or it is wholly black.
        PicturesError: it cannot be read.

    """
    if not is_file(file):
        raise RequestError(f"no mask at {file}")
    return mask_of(read_any_mask(file), str(file))


def parse_regions(texts: Sequence[str], layout: Path | None = None) -> list[Region]:
    """Read the texts of `--region`: boxes, masks, and colours of a painted picture.

    Raises:
        RequestError: a text has another form, or names no mask or colour.
        PicturesError: a picture cannot be read.

    """
    pairs = [split_region(text, FORMS) for text in texts]
    shapes: list[Shape | None] = [
        _box_or_mask(text, shape, layout) for text, (_, shape) in zip(texts, pairs, strict=True)
    ]
    if layout is not None:
        colours = [shape for (_, shape), known in zip(pairs, shapes, strict=True) if known is None]
        if not colours:
            raise RequestError(f"--layout {layout} is not used: give a --region with one of its colours")
        painted = iter(read_layout(layout).masks(colours))
        shapes = [shape or next(painted) for shape in shapes]
    return [Region(prompt, shape) for (prompt, _), shape in zip(pairs, shapes, strict=True) if shape]


def _box_or_mask(text: str, shape: str, layout: Path | None) -> Shape | None:
    """Return None for what must be a colour."""
    if (box := box_of(text, shape, FORMS)) is not None:
        return box
    if layout is not None and Path(shape).suffix.lower() not in SUFFIXES:
        return None
    try:
        return read_shape(Path(shape))
    except (RequestError, PicturesError) as error:
        raise type(error)(f"region {text!r}: {error}; expected {FORMS}") from error


def _rgb(colour: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(colour)[:3]
    except ValueError:
        raise RequestError(f"{colour!r} is no colour: write it as #ff0000 or by name, such as red") from None
