"""The skeletons of people as published pose adapters read them: OpenPose's, in its colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

Joint = tuple[float, float] | None
JOINTS = 18
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
"""Pairs of joints in the order of COCO: nose, neck, arms, legs, eyes, ears; the right one first."""

# Eighteen hues around the circle, from red; joints are bright, limbs are darker.
_HUES = (0, 85, 170, 255)
COLOURS = (
    *((255, g, 0) for g in _HUES),
    *((255 - r, 255, 0) for r in _HUES[1:]),
    *((0, 255, b) for b in _HUES[1:]),
    *((0, 255 - g, 255) for g in _HUES[1:]),
    *((r, 0, 255) for r in _HUES[1:]),
    *((255, 0, 255 - b) for b in _HUES[1:3]),
)
LIMB_LIGHT = 0.6
STICK = 4 / 512  # half the width of a limb and the radius of a joint, as shares of the picture's height


def draw_skeletons(people: Sequence[Sequence[Joint]], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw people on black; each has its joints in fractions of width and height, or None."""
    image = Image.new("RGB", (width, height))
    pen, radius = ImageDraw.Draw(image), max(1.0, STICK * height)
    for joints in people:
        at = [None if joint is None else (joint[0] * width, joint[1] * height) for joint in joints]
        for (first, second), colour in zip(LIMBS, COLOURS, strict=False):
            begin, end = at[first], at[second]
            if begin and end:
                darker = (int(colour[0] * LIMB_LIGHT), int(colour[1] * LIMB_LIGHT), int(colour[2] * LIMB_LIGHT))
                pen.line((*begin, *end), fill=darker, width=max(1, round(2 * radius)))
        for point, colour in zip(at, COLOURS, strict=True):
            if point:
                x, y = point
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return np.asarray(image)
