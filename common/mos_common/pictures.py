"""Drawn pictures as image files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mos_common.errors import RequestError
from mos_common.files import write_atomically

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# Other tools' usual defaults blur the edges of colours; a drawing is kept as it was made.
OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}


def as_image(picture: Float[Tensor, "3 height width"]) -> Image.Image:
    """Return a picture in [-1, 1] as an image."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def picture_format(file: Path) -> str:
    """Return Pillow's name of the format that a file's suffix promises.

    Raises:
        RequestError: a picture cannot be written under that name.

    """
    try:
        return FORMATS[file.suffix.lower()]
    except KeyError:
        raise RequestError(f"--out {file}: a picture is written as {', '.join(FORMATS)}; give one of these") from None


def image_bytes(image: Image.Image, kind: str, **told: Any) -> bytes:
    """Return an image as a file of a format; `told` is what the file says besides, for Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **OPTIONS.get(kind, {}), **told)
    return buffer.getvalue()


def save_image(image: Image.Image, file: Path, **told: Any) -> None:
    """Write an image in the format that the file's suffix promises, whole or not at all.

    Raises:
        RequestError: the suffix is not one of `FORMATS`.
        StateError: the file cannot be written.

    """
    write_atomically(file, image_bytes(image, picture_format(file), **told))


def save_picture(picture: Float[Tensor, "3 height width"], file: Path) -> None:
    """Write a picture in [-1, 1] as `save_image` does."""
    save_image(as_image(picture), file)
