"""The contact sheet of a batch: its pictures side by side, each with its seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

GAP, LINE = 8, 16
PAPER, INK = "white", "black"


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str] = ()) -> Image.Image:
    """Return pictures of one size in rows, as wide as high, with a label below each."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].width + GAP, images[0].height + GAP + (LINE if labels else 0)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, image in enumerate(images):
        x, y = GAP + number % columns * width, GAP + number // columns * height
        sheet.paste(image, (x, y))
        if labels:
            pen.text((x, y + image.height + 2), labels[number], fill=INK)
    return sheet
