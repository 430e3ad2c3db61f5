"""Bring the colours of a picture to sRGB, from the colour profile that is embedded in its file.

Base models learnt from pictures whose numbers are sRGB. A phone's are Display P3, a camera's may be
Adobe RGB, a print shop's are CMYK: read as sRGB, they are paler, or wholly wrong.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image, ImageCms

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # Pillow's mode for a profile's colour space
STEPS = 9  # of the lattice of colours on which a profile is compared with sRGB
SAME = 2  # of 255: a profile that moves no colour further is sRGB, and pixels are left alone
BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError)
"""Errors that a damaged profile leads to."""
INTEROPERABILITY, INDEX, ADOBE_RGB = 0xA005, 1, "R03"  # in EXIF (DCF, optional colour space)
UNCALIBRATED = "its EXIF data says Adobe RGB, but it holds no colour profile: its colours are read as sRGB"
USUAL_GAMMA, NEARLY = 1 / 2.2, 0.1  # of PNG files; others within this share are read alike


@dataclass(frozen=True)
class Profile:
    """An embedded profile: its name, Pillow's mode for its pixels, and the transform to sRGB.

    `transform` is None if the profile is sRGB.
    """

    name: str
    mode: str
    transform: ImageCms.ImageCmsTransform | None


def to_srgb(picture: Image.Image, icc: bytes | None) -> tuple[Image.Image, str]:
    """Return an opaque picture as RGB in sRGB, and what was done to its colours in words, or "".

    A profile that is broken, or not for this kind of pixels, is left out, and said to be.
    """
    if not icc:
        return picture.convert("RGB"), ""
    plain = picture if picture.mode in ("RGB", "L", "CMYK") else picture.convert("RGB")
    try:
        profile = _read(icc)
        if profile is None:
            return plain.convert("RGB"), ""
        fitting = _in_mode(plain, profile.mode)
        if fitting is None:
            return plain.convert("RGB"), f"its colour profile {profile.name!r} is not for {plain.mode}: it is left out"
        if profile.transform is None:
            return fitting.convert("RGB"), ""
        converted = ImageCms.applyTransform(fitting, profile.transform)
    except BROKEN:
        return plain.convert("RGB"), "its colour profile is broken and left out"
    assert converted is not None
    return converted, f"its colours are converted from {profile.name!r} to sRGB"


def unused_colours(file: Image.Image) -> str:
    """Return what an open file without a profile says of its colours and is not followed, or ""."""
    gamma = file.info.get("gamma")
    if isinstance(gamma, float) and "srgb" not in file.info and abs(gamma / USUAL_GAMMA - 1) > NEARLY:
        return f"its header says gamma {gamma:g}, which is not used: its colours are read as sRGB"
    try:
        index = file.getexif().get_ifd(INTEROPERABILITY).get(INDEX)
    except (*BROKEN, LookupError, SyntaxError, struct.error):
        return ""
    return UNCALIBRATED if isinstance(index, str) and index.strip("\0 ") == ADOBE_RGB else ""


@lru_cache(maxsize=16)
def _read(icc: bytes) -> Profile | None:
    """Return the profile; None for one that describes no pixels (Lab, as of a Lab picture)."""
    opened = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    mode = MODES.get(opened.profile.xcolor_space.strip())
    if mode is None:
        return None
    transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    return Profile(
        ImageCms.getProfileDescription(opened).strip(), mode, None if _is_srgb(transform, mode) else transform
    )


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "CMYK":
        return False
    levels = np.linspace(0, 255, STEPS).round().astype(np.uint8)
    shown = Image.fromarray(
        np.arange(256, dtype=np.uint8)[None] if mode == "L" else np.array([list(product(levels, repeat=3))], np.uint8)
    )
    moved = ImageCms.applyTransform(shown, transform)
    assert moved is not None
    change = np.asarray(moved, dtype=int) - np.asarray(shown.convert("RGB"), dtype=int)
    return int(np.abs(change).max()) <= SAME


def _in_mode(picture: Image.Image, mode: str) -> Image.Image | None:
    """Return a picture in the mode of its profile; None if they have nothing to do with each other.

    Grey pictures keep the profile of the colours they were made from, and Pillow opens some grey
    pictures as RGB.
    """
    if picture.mode == mode:
        return picture
    if (picture.mode, mode) == ("L", "RGB"):
        return picture.convert("RGB")
    if (picture.mode, mode) == ("RGB", "L"):
        grey = picture.convert("L")
        return grey if grey.convert("RGB").tobytes() == picture.tobytes() else None
    return None
