"""Read a picture file of any common format as upright RGB, with its transparency as a mask."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from mos_common.errors import PicturesError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"})
HEIC = frozenset({".heic", ".heif"})
MAX_PIXELS = 64_000_000
DAMAGED = (
    UnidentifiedImageError,
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
"""Errors that Pillow raises on damaged files."""
SHOWN_THROUGH = 0.02  # a share of transparent pixels above this is a cut-out, not a smoothed edge


@dataclass(frozen=True)
class Read:
    """A picture as RGB on white; `mask` (8-bit grey) is a cut-out's alpha channel, else None."""

    picture: Image.Image
    mask: Image.Image | None


def read_picture(path: Path) -> Read:
    """Read a picture and turn it upright as its EXIF data says.

    Raises:
        PicturesError: it cannot be read; the message names the file.

    """
    can_read_heic()
    try:
        with _opened(path) as file:
            upright = ImageOps.exif_transpose(file)
            if not upright.has_transparency_data:
                return Read(upright.convert("RGB"), None)
            layers = upright.convert("RGBA")
            alpha = layers.getchannel("A")
            flat = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
            return Read(flat, alpha if _cut_out(alpha) else None)
    except DAMAGED as error:
        raise PicturesError(_unreadable(path, error)) from error


def open_picture(path: Path) -> Image.Image:
    """Read a picture without its mask."""
    return read_picture(path).picture


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """Read a mask as 8-bit grey, white where the concept is, resized to its picture.

    Raises:
        PicturesError: it cannot be read, or its aspect ratio is not its picture's.

    """
    try:
        with _opened(path) as file:
            upright = ImageOps.exif_transpose(file)
            # A layer of one colour on a transparent background marks the concept by its alpha.
            mask = upright.getchannel("A") if upright.mode in ("RGBA", "LA") else upright.convert("L")
    except DAMAGED as error:
        raise PicturesError(_unreadable(path, error)) from error
    if abs(mask.width / mask.height - size[0] / size[1]) > 0.02 * size[0] / size[1]:
        raise PicturesError(
            f"mask {path} is {mask.width} x {mask.height}, its picture {size[0]} x {size[1]}: "
            "draw the mask on the picture itself"
        )
    return mask.resize(size, Image.Resampling.BILINEAR)


def _opened(path: Path) -> Image.Image:
    """Open a picture, or refuse it by the size in its header, before it is decompressed."""
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):  # our own cap is lower
        file = Image.open(path)
    if file.width * file.height > MAX_PIXELS:
        file.close()
        raise PicturesError(
            f"{path} has {file.width} x {file.height} pixels, more than {MAX_PIXELS:,}: make it smaller"
        )
    return file


def _cut_out(alpha: Image.Image) -> bool:
    through = sum(alpha.histogram()[:128])
    return SHOWN_THROUGH < through / (alpha.width * alpha.height) < 1


def _unreadable(path: Path, error: Exception) -> str:
    if path.suffix.lower() in HEIC and not can_read_heic():
        return (
            f"picture {path} is HEIC, which needs the package pillow-heif: pip install pillow-heif, or save it as JPEG"
        )
    if isinstance(error, Image.DecompressionBombError):
        return f"picture {path} has far more than {MAX_PIXELS:,} pixels: make it smaller"
    return f"picture {path} cannot be read ({type(error).__name__}): repair it or remove it from the folder"


@cache
def can_read_heic() -> bool:
    """Register the HEIC plug-in with Pillow; return False if it is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True
