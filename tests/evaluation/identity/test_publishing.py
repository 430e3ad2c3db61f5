"""Publishing copies the page, tables and pictures of a run into the docs, each once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mos_bench.identity.pages.publishing import publish


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A run's folder: a page with a plot and a contact sheet, tables, and what repeats them."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "results.md").write_text("# Measured\n\n![plot](curve.png)\n\n![one](sheet-one.png)\n", encoding="utf-8")
    for name in ("curve.csv", "curve.md", "identity.csv", "identity.json"):
        (folder / name).write_text(name, encoding="utf-8")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("curve.png", "sheet-one.png"):
        Image.fromarray(noise).save(folder / name)
    return folder


def test_nothing_that_repeats_the_page_or_the_tables_is_published(results, tmp_path):
    publish(results, tmp_path / "docs")
    published = {file.name for file in (tmp_path / "docs").iterdir()}
    assert published == {"results.md", "curve.csv", "curve.png", "sheet-one.webp"}
    told = (results / "results.md").read_text().replace("sheet-one.png", "sheet-one.webp")
    assert (tmp_path / "docs" / "results.md").read_text() == told


def test_without_sheets_neither_the_files_nor_the_page_have_them(results, tmp_path):
    publish(results, tmp_path / "docs", sheets=False)
    assert {file.name for file in (tmp_path / "docs").iterdir()} == {"results.md", "curve.csv", "curve.png"}
    assert (tmp_path / "docs" / "results.md").read_text() == "# Measured\n\n![plot](curve.png)\n"


def test_a_published_picture_is_smaller_and_looks_the_same(results, tmp_path):
    """The mean error is below 20 of 255 levels on noise, the worst case for 256 colours."""
    publish(results, tmp_path / "docs")
    before, after = results / "curve.png", tmp_path / "docs" / "curve.png"
    assert after.stat().st_size < before.stat().st_size / 2
    with Image.open(before) as one, Image.open(after) as other:
        assert other.mode == "P"
        error = np.abs(np.asarray(one, dtype=float) - np.asarray(other.convert("RGB"), dtype=float)).mean()
    assert error < 20
