"""Several pictures in one batch with their contact sheet, and previews on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mos_client.drawing.picture import draw_picture
from mos_client.drawing.previews import Preview
from mos_client.drawing.sheet import GAP, LINE, contact_sheet
from mos_common.concept_file import write_concept
from mos_common.drawing import Drawing
from mos_common.errors import PicturesError, RequestError, StateError
from mos_common.picture_metadata import MADE_BY_A_MODEL, read_recipe

HOW = Drawing(steps=3, scheduler="DDIMScheduler")


@pytest.fixture
def draws(sixteen, make_concept, random_base_folder, tmp_path):
    write_concept(make_concept(sixteen), tmp_path / "cat.safetensors")

    def run(out: str, **changes: object) -> list[Path]:
        settings = {"base": str(random_base_folder()), "how": HOW, "device": "cpu", **changes}
        return draw_picture(tmp_path / "cat.safetensors", "a <cat>", tmp_path / out, **settings)

    return run


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def test_each_seed_has_its_file_and_the_sheet_shows_all(draws, tmp_path):
    files = draws("x.png", seeds=(0, 7, 3))
    assert [file.name for file in files] == ["x-0.png", "x-7.png", "x-3.png", "x.png"]
    sheet, side = pixels(files[-1]), pixels(files[0]).shape[0]
    assert sheet.shape == (2 * (side + GAP + LINE) + GAP, 2 * (side + GAP) + GAP, 3)
    for number, file in enumerate(files[:3]):
        top, left = GAP + number // 2 * (side + GAP + LINE), GAP + number % 2 * (side + GAP)
        assert np.array_equal(sheet[top : top + side, left : left + side], pixels(file))
    (alone,) = draws("y.png", seeds=(7,))
    assert np.abs(pixels(files[1]).astype(int) - pixels(alone).astype(int)).max() <= 1


def test_the_batch_and_the_place_in_it_are_in_the_recipe(draws):
    *files, sheet = draws("x.webp", seeds=(4, 5))
    assert [(read_recipe(file).seeds, read_recipe(file).place) for file in files] == [([4, 5], 0), ([4, 5], 1)]
    assert read_recipe(sheet).place is None


def test_a_sheet_is_about_as_wide_as_high():
    images = [Image.new("RGB", (10, 10), (i, 0, 0)) for i in range(10)]
    assert contact_sheet(images).size == (4 * 18 + 8, 3 * 18 + 8)
    assert contact_sheet(images[:2]).size == (2 * 18 + 8, 18 + 8)


def test_memory_that_is_not_enough_for_a_batch_is_told(draws, monkeypatch):
    import torch

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("mos_client.drawing.picture.draw_request", full)
    with pytest.raises(
        RequestError, match=r"2 pictures at once do not fit into the memory of cpu: draw fewer \(--count\)"
    ):
        draws("x.png", seeds=(1, 2))


def test_a_preview_is_there_after_the_first_step_and_changes_nothing(draws, tmp_path, monkeypatch):
    seen: list[tuple[int, bytes]] = []

    def look(self: Preview, step: object) -> None:
        shown(self, step)
        seen.append((step.number, (tmp_path / "p.png").read_bytes()))

    shown = Preview.look
    monkeypatch.setattr(Preview, "look", look)
    monkeypatch.setattr("mos_client.drawing.previews.EVERY_S", 0.0)
    (watched,) = draws("x.png", preview=tmp_path / "p.png")
    (alone,) = draws("y.png")
    assert np.array_equal(pixels(watched), pixels(alone))
    assert [number for number, _ in seen] == [1, 2, 3]
    assert len({data for _, data in seen}) == 3, "each step was shown"
    assert np.array_equal(pixels(tmp_path / "p.png"), pixels(watched)), "at the end it is the picture"


def test_between_two_previews_is_a_second(draws, tmp_path, monkeypatch):
    clock, shown = iter([0.0, 0.4, 1.1]), []
    monkeypatch.setattr("mos_client.drawing.previews.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(Preview, "show", lambda _self, image: shown.append(image.size))
    draws("x.png", preview=tmp_path / "p.jpg")
    assert len(shown) == 3, "the first step, the third, and the picture"


def test_a_preview_says_that_a_model_made_it_and_has_no_recipe(draws, tmp_path):
    draws("x.png", preview=tmp_path / "p.webp", seeds=(1, 2))
    assert MADE_BY_A_MODEL.encode() in (tmp_path / "p.webp").read_bytes()
    with pytest.raises(PicturesError, match="has no recipe"):
        read_recipe(tmp_path / "p.webp")


def test_a_preview_that_cannot_be_written_is_said_before_drawing(draws, tmp_path):
    with pytest.raises(RequestError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        draws("x.png", preview=tmp_path / "p.txt")
    with pytest.raises(StateError):
        draws("x.png", preview=tmp_path)
