"""Copies of a run's page, tables and pictures for `docs/results/`."""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from mos_common.files import write_atomically

SHEET = re.compile(r"([\w-]*sheet[\w-]*)\.png")


def publish(results: Path, docs: Path, *, sheets: bool = True) -> None:
    """Copy a run's page, tables and pictures into `docs`.

    Contact sheets are copied only with `sheets`. Fragments of the page (the other *.md),
    identity.csv and identity.json are left out, since they repeat the page and the tables.
    """
    page = (results / "results.md").read_text(encoding="utf-8")
    page = SHEET.sub(r"\1.webp", page)
    lines = [line for line in page.splitlines() if sheets or not line.startswith("![") or "sheet" not in line]
    write_atomically(docs / "results.md", ("\n".join(lines).rstrip() + "\n").encode())
    for file in sorted([*results.glob("*.csv"), *results.glob("*.png")]):
        if file.name != "identity.csv" and (sheets or "sheet" not in file.name):
            publish_file(file, docs)


def publish_file(file: Path, docs: Path) -> None:
    """Copy one file into `docs`; reduce a PNG to 256 colours, a third of its size.

    A contact sheet, which is the largest, becomes a lossless WebP: a quarter smaller again.
    """
    name = file.name
    content = io.BytesIO(file.read_bytes())
    if file.suffix == ".png":
        with Image.open(content) as picture:
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        content, name = io.BytesIO(), SHEET.sub(r"\1.webp", file.name)
        if name == file.name:
            few.save(content, "PNG", optimize=True)
        else:
            few.save(content, "WEBP", lossless=True, quality=100, method=6)
    write_atomically(docs / name, content.getvalue())
