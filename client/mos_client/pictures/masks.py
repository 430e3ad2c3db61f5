"""Masks are white where the concept is: which channel says so, and what is odd about a mask."""

from __future__ import annotations

import numpy as np
from PIL import Image

MARKED = 128  # of 255: from here on, a pixel is the concept
PURE = 16  # of 255: so near to black or white is black or white
MOSTLY, PRESENT = 0.95, 0.01  # shares of the opaque pixels


def marked_channel(mask: Image.Image) -> Image.Image | None:
    """Return the channel that marks the concept; None if there are two that disagree.

    A layer of one colour on a transparent background marks the concept by its alpha, and so does a
    photograph with its background cut away. An alpha channel that is the same everywhere says
    nothing, and the grey counts.
    """
    if not mask.has_transparency_data:
        return mask.convert("L")
    layers = mask.convert("RGBA")
    alpha, grey = layers.getchannel("A"), layers.convert("RGB").convert("L")
    lowest, highest = alpha.getextrema()
    if lowest == highest:
        return grey
    shown = np.asarray(grey)[np.asarray(alpha) >= MARKED]
    count = max(len(shown), 1)
    black, white = int((shown < PURE).sum()) / count, int((shown > 255 - PURE).sum()) / count
    return None if black + white > MOSTLY and min(black, white) > PRESENT else alpha


def marks_nothing(mask: Image.Image) -> bool:
    """Return True if no pixel of a mask is nearer to white than to black."""
    return int(np.asarray(mask).max()) < MARKED


def mask_remark(mask: Image.Image) -> str:
    """Return what is odd about a mask that marks nothing or everything, or ""."""
    if marks_nothing(mask):
        brightest = int(np.asarray(mask).max())
        what = "wholly black" if brightest == 0 else f"nearly black (its brightest value is {brightest} of 255)"
        return f"{what}: it marks nothing and is left out; white is where the concept is"
    if int(np.asarray(mask).min()) >= MARKED:
        return "wholly white: it marks the whole picture"
    return ""
