"""Contact sheets: the same prompts and seeds, row by row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case
from mos_client.pictures.examples import load_pictures
from mos_client.pictures.folder import split_pictures
from mos_common.files import write_atomically
from mos_common.pictures import as_image

HEIGHT, GAP, HEAD, MARGIN = 96, 4, 18, 170
ROWS = 16


@dataclass(frozen=True)
class Line:
    """One line of a sheet: its title and its pictures."""

    title: str
    pictures: Sequence[Tensor]


def concept_sheet(bench: Bench, concept: BenchConcept, cases: Sequence[Case], path: Path, title: str) -> None:
    """Write held-back pictures, then each case's drawings at the first seed."""
    _, held_back = split_pictures(bench.tuned.pictures(concept))
    lines = [Line("held back", list(load_pictures(held_back, bench.base.picture_size)))]
    for case in cases:
        if (scores := case.scores.get(concept.name)) and scores.drawings:
            keys = scores.drawings[:: bench.protocol.seeds]
            lines.append(Line(case.name, [bench.cache.picture(key) for key in keys]))
    write_sheet(path, lines, title)


def write_sheet(path: Path, lines: Sequence[Line], title: str) -> None:
    """Write a picture of labelled lines of pictures."""
    lines = lines[:ROWS]
    widths = [sum(_width(picture) + GAP for picture in line.pictures) for line in lines]
    sheet = Image.new("RGB", (MARGIN + max([*widths, 200]), HEAD + len(lines) * (HEIGHT + GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    pen.text((4, 2), title, fill="black", font=font)
    for r, line in enumerate(lines):
        top, left = HEAD + r * (HEIGHT + GAP), MARGIN
        pen.multiline_text((4, top + 4), _wrapped(line.title), fill="black", font=font)
        for picture in line.pictures:
            image = as_image(picture).resize((_width(picture), HEIGHT), Image.Resampling.NEAREST)
            sheet.paste(image, (left, top))
            left += image.width + GAP
    png = io.BytesIO()
    sheet.save(png, "PNG")
    write_atomically(path, png.getvalue())


def case_sheet(bench: Bench, cases: Sequence[Case], path: Path, title: str, columns: int = 6) -> None:
    """Write one line per case with its first drawings, for pictures of several concepts."""
    lines = []
    for case in cases:
        keys = list(dict.fromkeys(key for scores in case.scores.values() for key in scores.drawings))[:columns]
        lines.append(Line(case.name, [bench.cache.picture(key) for key in keys]))
    write_sheet(path, lines, title)


def _width(picture: torch.Tensor) -> int:
    return round(HEIGHT * picture.shape[2] / picture.shape[1])


def _wrapped(title: str, width: int = 26) -> str:
    lines = [""]
    for word in title.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(line.strip() for line in lines)
