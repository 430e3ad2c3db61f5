"""Drawn pictures as image files."""

from __future__ import annotations

import io
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mos_common.files import write_atomically


def as_image(picture: Float[Tensor, "3 height width"]) -> Image.Image:
    """Return a picture in [-1, 1] as an image."""
    pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def save_picture(picture: Float[Tensor, "3 height width"], file: Path) -> None:
    """Write a picture in [-1, 1] as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    as_image(picture).save(buffer, format="PNG")
    write_atomically(file, buffer.getvalue())
