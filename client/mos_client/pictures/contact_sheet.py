"""A contact sheet of a folder: its pictures as the base sees them, masks, and remarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from mos_client.pictures.folder import Picture
from mos_client.pictures.views import bucket_for, views_of
from mos_common.pictures import save_image

CELL, LINE, COLUMNS = 180, 14, 5
PAPER, INK, WARNING, OUTSIDE = "white", "black", (200, 60, 20), (40, 60, 160)


def write_contact_sheet(
    pictures: Sequence[Picture],
    held_back: Sequence[Picture],
    remarks: Mapping[Path, Sequence[str]],
    sizes: list[tuple[int, int]],
    out: Path,
) -> None:
    """Write the sheet: every picture as it is cropped, shaded outside its mask, remarks in red."""
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * (CELL + 3 * LINE)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = i % COLUMNS * CELL, i // COLUMNS * (CELL + 3 * LINE)
        shown = shown_as_used(picture, sizes)
        shown.thumbnail((CELL - 8, CELL - 8))
        sheet.paste(shown, (x + (CELL - shown.width) // 2, y + (CELL - shown.height) // 2))
        pen.text((x + 4, y + CELL), _short(picture.path.name), fill=INK)
        label = "held back" if picture in held_back else _short(picture.captions[0])
        pen.text((x + 4, y + CELL + LINE), label, fill=INK)
        if of_picture := remarks.get(picture.path):
            pen.text((x + 4, y + CELL + 2 * LINE), _short(of_picture[0]), fill=WARNING)
    save_image(sheet, out)


def write_crops(pictures: Sequence[Picture], sizes: list[tuple[int, int]], folder: Path) -> None:
    """Write every picture as it is used, numbered in the order of the folder from 000."""
    for number, picture in enumerate(pictures):
        save_image(shown_as_used(picture, sizes), folder / f"{number:03d}-{picture.path.stem}.png")


def shown_as_used(picture: Picture, sizes: list[tuple[int, int]]) -> Image.Image:
    """Return a picture as it is cropped, shaded outside its mask."""
    read = picture.read()
    size = bucket_for(read.picture.size, sizes)
    (view,) = views_of(read.picture, read.mask, size, crops=1, mirror=False, seed="")
    shown = view.of(read.picture)
    if read.mask is not None:
        tinted = Image.blend(shown, Image.new("RGB", shown.size, OUTSIDE), 0.6)
        shown = Image.composite(shown, tinted, view.of(read.mask))
    scale = CELL / max(shown.size)
    return (
        shown.resize((round(shown.width * scale), round(shown.height * scale)), Image.Resampling.NEAREST)
        if scale > 1
        else shown
    )


def _short(text: str) -> str:
    most = CELL // 6 - 1
    return text if len(text) <= most else text[: most - 1] + "…"
