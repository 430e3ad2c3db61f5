"""Read a picture or a mask of any common format: upright, in 8 bits, pictures in sRGB.

Every picture is read here. What a format can do differently (depth, colours,
orientation, transparency, frames) is normalised and noted, or the file is refused by name.
"""

from __future__ import annotations

import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mos_client.pictures.colour import to_srgb, unused_colours
from mos_client.pictures.depth import DEEP, Samples, UnknownRangeError, to_eight_bits
from mos_client.pictures.masks import marked_channel
from mos_common.aspect import same_shape
from mos_common.errors import PicturesError

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif"}
)
# Pillow's names. It would try others too, some with programs of their own (EPS with Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "HEIF", "AVIF")
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
AVIF_BRANDS = frozenset({b"avif", b"avis"})
TIFF = frozenset({b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"})
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
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Read:
    """A picture as RGB on white; `mask` (8-bit grey) is a cut-out's alpha channel, else None.

    `notes` say in words what was done to it, such as "its colours are converted"; `doubts` what its
    owner should look at. `turned` is true if EXIF data swapped width and height.
    """

    picture: Image.Image
    mask: Image.Image | None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    turned: bool = False


def read_picture(path: Path) -> Read:
    """Read a picture, turn it upright as its EXIF data says, and bring its colours to sRGB.

    Raises:
        PicturesError: it cannot be read; the message names the file.

    """
    try:
        with _opened(path, "picture") as file:
            profile = file.info.get("icc_profile")
            turned = file.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
            uncalibrated = "" if profile else unused_colours(file)
            upright, deep_note = _upright_in_eight_bits(file)
            frames = _frames(file)
        if upright.has_transparency_data:
            layers = upright.convert("RGBA")
            alpha = layers.getchannel("A")
            opaque, colour_note = to_srgb(
                upright.convert("L") if upright.mode == "LA" else layers.convert("RGB"), profile
            )
            opaque.putalpha(alpha)
            picture = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), opaque).convert("RGB")
            mask = alpha if _cut_out(alpha) else None
        else:
            picture, colour_note = to_srgb(upright, profile)
            mask = None
    except DAMAGED as error:
        raise PicturesError(_unreadable(path, error, "picture")) from error
    notes = tuple(note for note in (deep_note, colour_note, uncalibrated, frames) if note)
    return Read(picture, mask, notes, turned=turned)


def open_picture(path: Path) -> Image.Image:
    """Read a picture without its mask."""
    return read_picture(path).picture


def read_mask(path: Path, size: tuple[int, int], *, turned: bool = False) -> Image.Image:
    """Read a mask as 8-bit grey, white where the concept is, resized to its picture.

    `turned` says that the picture's EXIF data swapped its sides.

    Raises:
        PicturesError: as for `read_any_mask`, or its aspect ratio is not its picture's.

    """
    mask = read_any_mask(path)
    width, height = size
    if not same_shape(mask.size, size):
        hint = "draw the mask on the picture itself"
        if turned and same_shape(mask.size, (height, width)):
            hint = "its picture is turned by its EXIF data, so turn the mask too"
        raise PicturesError(f"mask {path} is {mask.width} x {mask.height}, its picture {width} x {height}: {hint}")
    return mask.resize(size, Image.Resampling.BILINEAR)


def read_any_mask(path: Path) -> Image.Image:
    """Read a mask in its own size as 8-bit grey, white where it marks.

    Raises:
        PicturesError: it cannot be read, or marks in two ways.

    """
    try:
        with _opened(path, "mask") as file:
            upright, _ = _upright_in_eight_bits(file)
        mask = marked_channel(upright)
    except DAMAGED as error:
        raise PicturesError(_unreadable(path, error, "mask")) from error
    if mask is None:
        raise PicturesError(
            f"mask {path} is black and white on a partly transparent background, and the two disagree: "
            "save it without transparency"
        )
    return mask


def _opened(path: Path, what: str) -> Image.Image:
    """Open a picture, or refuse it by what its header says, before it is decompressed.

    Raises:
        PicturesError: it is no file, or has too many pixels.

    """
    can_read_heic()
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise PicturesError(f"{what} {path} cannot be read (it is no file): take it out of the folder")
    Image.init()
    with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):  # our own cap is lower
        file = Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])
    if file.width * file.height > MAX_PIXELS:
        file.close()
        raise PicturesError(
            f"{path} has {file.width} x {file.height} pixels, more than {MAX_PIXELS:,}: make it smaller"
        )
    return file


def _upright_in_eight_bits(file: Image.Image) -> tuple[Image.Image, str]:
    """Return an open picture as its EXIF data turns it, in 8 bits; and what that took, in words.

    Raises:
        UnknownRangeError: its depth cannot be judged.

    """
    samples = Samples.of(file)
    upright = ImageOps.exif_transpose(file)
    return to_eight_bits(upright, samples) if upright.mode in DEEP else (upright, "")


def _unreadable(path: Path, error: Exception, what: str) -> str:
    """Return the message for a `what` ("picture", "mask") that cannot be read."""
    named = f"{what} {path}"
    if isinstance(error, UnknownRangeError):
        return f"{named} {error}"
    if isinstance(error, Image.DecompressionBombError):
        return f"{named} has far more than {MAX_PIXELS:,} pixels: make it smaller"
    start = _first_bytes(path)
    if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS and not can_read_heic():
        return f"{named} is HEIC, which needs the package pillow-heif: pip install pillow-heif, or save it as JPEG"
    if start[4:8] == b"ftyp" and start[8:12] in AVIF_BRANDS and "AVIF" not in Image.OPEN:
        return f"{named} is AVIF, which this Pillow cannot read: install Pillow 11.3 or newer, or save it as JPEG"
    if start[:4] in TIFF and isinstance(error, UnidentifiedImageError):
        return f"{named} is a TIFF with a kind of pixels that is not read: save it as an 8-bit PNG"
    reason = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    elif not start:
        reason = "it is empty"
    elif start.lstrip()[:1] == b"<":
        reason = "it holds a web page or a drawing (SVG), no picture"
    elif isinstance(error, UnidentifiedImageError):
        reason = "its format is not recognised"
    return f"{named} cannot be read ({reason}): repair it or remove it from the folder"


def _first_bytes(path: Path) -> bytes:
    with suppress(OSError), path.open("rb") as file:
        return file.read(16)
    return b""


def _frames(file: Image.Image) -> str:
    """Return a note on an animation or a file of several pages. MPO is a camera's kind of JPEG."""
    if file.format == "MPO":
        return ""
    with suppress(*DAMAGED):  # the first frame is whole
        frames = getattr(file, "n_frames", 1)
        return f"has {frames} frames: the first is used" if frames > 1 else ""
    return ""


def _cut_out(alpha: Image.Image) -> bool:
    through = sum(alpha.histogram()[:128])
    return SHOWN_THROUGH < through / (alpha.width * alpha.height) < 1


@cache
def can_read_heic() -> bool:
    """Register the HEIC plug-in with Pillow; return False if it is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True
