"""Regions as people write them: "PROMPT @ x0,y0,x1,y1", and images as masks."""

from __future__ import annotations

import re
from collections.abc import Sequence

from PIL import Image

from mos_common.errors import RequestError
from mos_common.regions import Region
from mos_common.shapes import Box, Mask

FORM = '"PROMPT @ x0,y0,x1,y1" in fractions of the picture; for other shapes give Region(PROMPT, mask_of(IMAGE))'
MOST_SIDE = 2048  # pixels; more than any feature map shows


def split_region(text: str, forms: str) -> tuple[str, str]:
    """Return the prompt and the shape; " @ " divides them, so both may contain "@".

    Raises:
        RequestError: one of them is missing; `forms` is what was expected.

    """
    prompt, at, shape = text.rpartition(" @ " if " @ " in text else "@")
    if not at or not prompt.strip() or not shape.strip():
        raise RequestError(f"region {text!r}: expected {forms}")
    return prompt.strip(), shape.strip()


def box_of(text: str, shape: str, forms: str) -> Box | None:
    """Return the box that the shape of a region's text says; None if it is not in numbers.

    Raises:
        RequestError: it is in numbers, but no box.

    """
    try:
        return Box(*map(float, shape.split(",")))
    except RequestError as error:
        raise RequestError(f"region {text!r}: {error}") from error
    except (ValueError, TypeError):  # not numbers, or not four
        pass
    if re.fullmatch(r"[\d\s.,+-]+", shape):
        raise RequestError(f"region {text!r}: expected {forms}")
    return None


def regions_of(given: Sequence[Region | str]) -> tuple[Region, ...]:
    """Return regions, some of which may be written as texts with a box.

    Raises:
        RequestError: a text has another form.

    """
    return tuple(each if isinstance(each, Region) else _boxed(each) for each in given)


def mask_of(image: Image.Image, name: str = "") -> Mask:
    """Return an image as the shape of a region: white inside, grey at soft edges.

    Raises:
        RequestError: it is wholly black.

    """
    grey = bounded(image.convert("L"), Image.Resampling.BOX)
    return Mask(grey.width, grey.height, grey.tobytes(), name)


def bounded(image: Image.Image, how: Image.Resampling) -> Image.Image:
    """Return an image of at most MOST_SIDE pixels a side."""
    scale = MOST_SIDE / max(image.size)
    if scale >= 1:
        return image
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)


def _boxed(text: str) -> Region:
    prompt, shape = split_region(text, FORM)
    if (box := box_of(text, shape, FORM)) is None:
        raise RequestError(f"region {text!r}: expected {FORM}")
    return Region(prompt, box)
