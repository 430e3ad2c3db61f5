"""Copies of a run's page, tables and pictures for `docs/results/`."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from mos_common.files import write_atomically


def publish(results: Path, docs: Path, *, sheets: bool = True) -> None:
    """Copy a run's page, tables and pictures into `docs`.

    Contact sheets are copied only with `sheets`. Fragments of the page (the other *.md),
    identity.csv and identity.json are left out, since they repeat the page and the tables.
    """
    page = (results / "results.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if sheets or not line.startswith("![") or "sheet" not in line]
    write_atomically(docs / "results.md", ("\n".join(lines).rstrip() + "\n").encode())
    for file in sorted([*results.glob("*.csv"), *results.glob("*.png")]):
        if file.name != "identity.csv" and (sheets or "sheet" not in file.name):
            publish_file(file, docs)


def publish_file(file: Path, docs: Path) -> None:
    """Copy one file into `docs`; reduce a PNG to 256 colours, a third of its size."""
    content = io.BytesIO(file.read_bytes())
    if file.suffix == ".png":
        with Image.open(content) as picture:
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        content = io.BytesIO()
        few.save(content, "PNG", optimize=True)
    write_atomically(docs / file.name, content.getvalue())
