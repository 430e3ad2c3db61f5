"""Bring grey pictures of more than 8 bits a pixel (16-bit, 32-bit, floating point) to 8 bits.

Pillow's own conversion clips at 255, so a 16-bit picture becomes white and a floating-point one
black. The range is that of the format: 65535 for 16 bits. A file that uses only the lowest part of
its range was written with a narrower one in mind; which one is judged from its brightest value, or
the picture is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

DEEP = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})
BITS_PER_SAMPLE, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 259, 262, 284, 339  # TIFF tags
UNCOMPRESSED, WHITE_IS_ZERO, SEPARATE, SIGNED = 1, 0, 2, 2
NARROWER = (255, 65535)
FULL = 16  # a picture of the full range reaches at least 1/16 of it
OVERSHOOT = 0.01  # of a floating-point range, from resampling


class UnknownRangeError(ValueError):
    """Values whose range cannot be told; the message completes the sentence "the picture ..."."""


@dataclass(frozen=True)
class Samples:
    """The storage of grey values, as a file declares it."""

    bits: int = 16
    signed: bool = False
    white_is_zero: bool = False

    @classmethod
    def of(cls, file: Image.Image) -> Samples:
        """Return what an open file declares.

        Raises:
            UnknownRangeError: Pillow would mistake its samples for others.

        """
        tags = getattr(file, "tag_v2", {})
        bits = tags.get(BITS_PER_SAMPLE, (16,))
        # Pillow 13 reads such planes as if they had 8 bits.
        if len(bits) > 1 and bits[0] > 8 and (tags.get(PLANAR), tags.get(COMPRESSION)) == (SEPARATE, UNCOMPRESSED):
            raise UnknownRangeError(f"is a TIFF with {bits[0]}-bit colours in separate planes: save it as a PNG")
        return cls(
            int(bits[0]),
            int(tags.get(SAMPLE_FORMAT, (1,))[0]) == SIGNED,
            tags.get(PHOTOMETRIC) == WHITE_IS_ZERO,
        )


def to_eight_bits(image: Image.Image, samples: Samples) -> tuple[Image.Image, str]:
    """Return a deep grey picture in 8 bits (mode L, or LA), and what was done to it in words.

    Raises:
        UnknownRangeError: its range cannot be told.

    """
    values = np.asarray(image)
    if image.mode == "F":
        top, note = _float_range(values)
    else:
        if image.mode == "I" and samples.bits == 32 and not samples.signed:
            values = values.view(np.uint32)
        top, note = _integer_range(values, samples)
    scaled = np.clip(values.astype(np.float32) / np.float32(top), 0, 1)
    if samples.white_is_zero:
        scaled = 1 - scaled
    grey = Image.fromarray(np.rint(scaled * 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG: the one value that is transparent
        grey.putalpha(Image.fromarray((values != transparent).astype(np.uint8) * 255))
    return grey, note


def _integer_range(values: np.ndarray, samples: Samples) -> tuple[int, str]:
    lowest, brightest = int(values.min()), int(values.max())
    bits, full = samples.bits, 2 ** (samples.bits - samples.signed) - 1
    if lowest < 0:
        raise UnknownRangeError(f"has values below zero (down to {lowest}): save it as an 8-bit PNG")
    top = next((narrower for narrower in NARROWER if brightest <= narrower < full), full)
    if top < full:
        return top, f"has {bits} bits a pixel, but its values end at {brightest}: they are read as out of {top}"
    if brightest < full / FULL:
        raise UnknownRangeError(
            f"has {bits} bits a pixel and values up to {brightest}, so its range cannot be told: "
            "save it as an 8-bit or 16-bit PNG"
        )
    return full, f"has {bits} bits a pixel: its values up to {brightest} of {full} are scaled to 8 bits"


def _float_range(values: np.ndarray) -> tuple[float, str]:
    lowest, brightest = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise UnknownRangeError("holds values that are not finite (NaN or infinity): save it as an 8-bit PNG")
    if lowest >= -OVERSHOOT and brightest <= 1 + OVERSHOOT:
        top = 1.0
    elif lowest >= -255 * OVERSHOOT and 255 / FULL <= brightest <= 255 * (1 + OVERSHOOT):
        top = 255.0
    else:
        raise UnknownRangeError(
            f"has floating-point values from {lowest:g} to {brightest:g}, neither from 0 to 1 nor from 0 to 255: "
            "save it as an 8-bit PNG"
        )
    return top, f"has floating-point values: 0 to {top:g} is scaled to 8 bits"
