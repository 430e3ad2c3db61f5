"""`mos-client check`: its report on a folder of pictures, and the contact sheet."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mos_client.pictures import check as check_command
from mos_client.pictures import quality
from mos_client.pictures.check import check_folder
from mos_client.pictures.folder import find_pictures
from mos_client.pictures.marks import Marks
from mos_client.pictures.quality import remarks, sharpness
from mos_client.pictures.reading import open_picture
from mos_common.errors import PicturesError, RequestError, StateError


def noise(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A picture with detail at every scale, unlike that of any other seed."""
    g = np.random.default_rng(seed)
    coarse = Image.fromarray(g.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = g.integers(-40, 40, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse, dtype=int) + fine).clip(0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four good pictures of three shapes."""
    to = tmp_path / "cats"
    to.mkdir()
    for i, size in enumerate([(96, 96), (96, 96), (128, 64), (64, 128)]):
        noise(i, size).save(to / f"{i:02}.png")
    return to


def checked(folder: Path, base, out: Path) -> list[str]:
    return list(check_folder(folder, base, out))


def said_of(folder: Path, smallest: int = 16) -> list[tuple[str, str]]:
    return [(picture.path.name, said) for picture, said in remarks(find_pictures(folder), smallest)]


def test_good_pictures_have_no_remarks(folder):
    assert said_of(folder) == []


@pytest.mark.parametrize("how", ["copied", "as a JPEG", "made smaller", "brighter by a hair"])
def test_the_same_picture_again_is_reported_with_the_one_it_is_like(folder, how):
    again = noise(1)
    if how == "made smaller":
        again = again.resize((60, 60), Image.Resampling.LANCZOS)
    elif how == "brighter by a hair":
        again = again.point(lambda x: min(x + 2, 255))
    again.save(folder / ("04.jpg" if how == "as a JPEG" else "04.png"))
    ((name, said),) = said_of(folder)
    assert name.startswith("04.")
    assert "nearly the same as 01.png" in said


def test_another_picture_of_the_same_thing_is_no_duplicate(folder):
    noise(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "04.png")
    assert said_of(folder) == []


def test_a_picture_much_blurrier_than_the_others_is_reported(folder):
    noise(7).filter(ImageFilter.GaussianBlur(4)).save(folder / "04.png")
    ((name, said),) = said_of(folder)
    assert name == "04.png"
    assert "much blurrier" in said


def test_sharpness_is_the_variance_of_the_laplacian():
    """By hand, with a 4-neighbour Laplacian offset by 128 and clamped to a byte as in Pillow."""
    grey = np.random.default_rng(0).integers(100, 140, (20, 30)).astype(np.uint8)
    x = grey.astype(int)
    by_hand = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1] + 128
    assert sharpness(Image.fromarray(grey)) == pytest.approx(float(by_hand.clip(0, 255).var()), rel=1e-4)
    assert sharpness(Image.new("RGB", (2, 9))) == 0.0


def test_a_picture_smaller_than_the_base_s_is_reported(folder):
    assert [name for name, said in said_of(folder, smallest=96) if "enlarging it to 96 adds no detail" in said] == [
        "02.png",
        "03.png",
    ]


def test_pictures_are_looked_at_one_after_the_other(folder, monkeypatch):
    """A hundred photographs at once would be gigabytes."""
    opened_pictures: list[weakref.ref] = []

    def opened(path: Path) -> Image.Image:
        gc.collect()
        assert sum(picture() is not None for picture in opened_pictures) <= 1, "those before the last are let go"
        picture = open_picture(path)
        opened_pictures.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(quality, "open_picture", opened)
    assert said_of(folder) == []
    assert len(opened_pictures) == 4


def test_everything_that_was_found_is_told(folder, tiny, tmp_path):
    (folder / "00.txt").write_text("V asleep")
    Image.new("L", (96, 96), 255).save(folder / "01.mask.png")
    cut_out = noise(9).convert("RGBA")
    cut_out.paste((0, 0, 0, 0), (0, 0, 48, 96))
    cut_out.save(folder / "04.png")
    noise(9).filter(ImageFilter.GaussianBlur(6)).save(folder / "05.png")
    (folder / "06.png").write_bytes(b"broken")
    text = "\n".join(checked(folder, tiny, tmp_path / "sheet.png"))
    for line in (
        f"{folder}: 6 usable pictures\n",
        "06.png cannot be read",
        "captions: 1 of 6; the others get 'photo of a V', 'V'",
        "masks: 2 of 6",
        "held back for scoring, never tuned on: 04.png, 05.png",
        "look at 05.png: it is much blurrier",
        f"contact sheet: {tmp_path / 'sheet.png'}",
    ):
        assert line in text
    (shapes,) = [line for line in text.splitlines() if "shown to tiny at its sizes" in line]
    assert "4 at 64 x 64" in shapes
    assert shapes.count(" at ") == 4, "the phrase, squares, wide ones, high ones"


def test_what_was_done_to_read_pictures_and_what_nobody_uses_is_told(folder, tiny, tmp_path):
    for name in ("04.png", "05.png"):
        Image.fromarray(np.arange(96 * 96, dtype=np.uint16).reshape(96, 96) * 7).save(folder / name)
    Image.new("L", (96, 96), 0).save(folder / "00.mask.png")
    Image.new("L", (96, 96), 255).save(folder / "01.mask.png")
    for name in ("09.txt", "08.txt", "list.csv", "old/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    lines = checked(folder, tiny, tmp_path / "sheet.png")
    for line in (
        "  masks: 1 of 6",
        "  look at 00.png: it has a mask 00.mask.png that is wholly black: it marks nothing and is left out; "
        "white is where the concept is",
        "  look at 01.png: it has a mask 01.mask.png that is wholly white: it marks the whole picture",
        "  read 04.png, 05.png: has 16 bits a pixel: its values up to 64505 of 65535 are scaled to 8 bits",
        "  not used: 08.txt, 09.txt: no picture has this name, so it is nobody's caption",
        "  not used: list.csv: it is neither a picture, a caption nor a mask",
        "  not used: old: sub-folders are not looked into; it holds 1 picture (a.png)",
    ):
        assert line in lines


def test_the_word_of_kohya_s_folder_is_asked_about_where_captions_have_it_and_no_mark(folder, tiny, tmp_path):
    (tmp_path / "img").mkdir()
    place = folder.rename(tmp_path / "img" / "10_ohwx man")
    for i in range(3):
        (place / f"{i:02}.txt").write_text(f"ohwx man, sitting {i}")
    (asked,) = [line for line in checked(tmp_path / "img", tiny, tmp_path / "a.png") if "--mark" in line]
    assert asked.endswith("3 of 3 have 'ohwx': does it stand for the concept? --mark ohwx")
    marked = list(check_folder(place, tiny, tmp_path / "a.png", Marks(None, "ohwx")))
    assert "    00.png: 'ohwx man, sitting 0' becomes 'V man, sitting 0'" in marked
    (place / "00.txt").write_text("V man, sitting")
    assert not [line for line in checked(place, tiny, tmp_path / "a.png") if "--mark" in line]


def test_a_sheet_beside_the_pictures_of_a_layout_is_refused_too(folder, tiny, tmp_path):
    (tmp_path / "set").mkdir()
    folder.rename(tmp_path / "set" / "image")
    with pytest.raises(RequestError, match="would be read as one"):
        checked(tmp_path / "set", tiny, tmp_path / "set" / "image" / "check.png")
    assert checked(tmp_path / "set", tiny, tmp_path / "check.png")


def test_too_few_are_an_error_after_what_is_wrong_with_each_was_said(folder, tiny, tmp_path):
    for name in ("01.png", "02.png"):
        (folder / name).write_bytes(b"broken")
    said: list[str] = []
    with pytest.raises(PicturesError, match=r"2 usable pictures in .*at least 3"):
        said.extend(check_folder(folder, tiny, tmp_path / "sheet.png"))
    lines = check_folder(folder, tiny, tmp_path / "sheet.png")
    assert "2 usable pictures" in next(lines)
    assert ["01.png" in next(lines), "02.png" in next(lines)] == [True, True]
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_among_the_pictures_or_at_no_place_is_refused_before_anything_is_read(folder, tiny, tmp_path):
    with pytest.raises(RequestError, match="would be read as one"):
        checked(folder, tiny, folder / "check.png")
    with pytest.raises(StateError, match="cannot be written"):
        checked(folder, tiny, folder / "00.png" / "check.png")


def test_masks_are_offered_where_a_model_for_them_lies_on_disk(folder, tiny, tmp_path, monkeypatch):
    def offers(model: Path | None) -> list[str]:
        monkeypatch.setattr(check_command, "model_on_disk", lambda: model)
        return [line for line in checked(folder, tiny, tmp_path / "sheet.png") if "--masks-with" in line]

    assert offers(None) == []
    (offer,) = offers(tmp_path / "clipseg")
    assert f"mos-client check {folder} --masks-with {tmp_path / 'clipseg'} --class WORD" in offer
    for path in sorted(folder.glob("*.png")):
        Image.new("L", open_picture(path).size, 255).save(path.with_suffix(".mask.png"))
    assert offers(tmp_path / "clipseg") == [], "every picture has one"


def test_the_contact_sheet_shows_every_picture_and_shades_what_its_mask_leaves_out(tiny, tmp_path):
    """One red picture in a cell of its own; the right half, outside its mask, is tinted."""
    folder = tmp_path / "red"
    folder.mkdir()
    for i in range(7):
        Image.new("RGB", (64, 64), (250, 10 * i, 10)).save(folder / f"{i}.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "1.mask.png")
    (folder / "2.txt").write_text("V ein Kätzchen 猫 " + "lang " * 20)
    checked(folder, tiny, tmp_path / "deep" / "sheet.png")
    with Image.open(tmp_path / "deep" / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (5 * 180, 2 * (180 + 3 * 14)), "five in a row"
        plain, left, right = (sheet.getpixel((x, 90)) for x in (90, 180 + 45, 180 + 135))
        last, empty = sheet.getpixel((180 + 90, 222 + 90)), sheet.getpixel((4 * 180 + 90, 222 + 90))
    assert plain == (250, 0, 10)
    assert left == (250, 10, 10)
    assert right[0] < 150 < right[2] + 60
    assert last == (250, 60, 10)
    assert empty == (255, 255, 255)


def test_every_picture_is_written_as_it_is_used(folder, tiny, tmp_path):
    """In the order of the folder, at a size of the base, and dark outside its mask."""
    mask = Image.new("L", (96, 96), 0)
    mask.paste(255, (0, 0, 48, 96))
    mask.save(folder / "01.mask.png")
    lines = list(check_folder(folder, tiny, tmp_path / "sheet.png", crops=tmp_path / "crops"))
    assert f"crops: {tmp_path / 'crops'}" in lines
    written = sorted((tmp_path / "crops").iterdir())
    assert [file.name for file in written] == ["000-00.png", "001-01.png", "002-02.png", "003-03.png"]
    plain, masked, *_ = (np.asarray(Image.open(file).convert("L"), dtype=float) for file in written)
    width = masked.shape[1]
    assert masked[:, : width // 3].mean() > 1.3 * masked[:, -width // 3 :].mean()
    assert plain.std() > masked[:, -width // 3 :].std()


def test_crops_take_no_other_files_place(folder, tiny, tmp_path):
    with pytest.raises(RequestError, match="would be read as one"):
        list(check_folder(folder, tiny, tmp_path / "sheet.png", crops=folder / "crops"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="holds something already"):
        list(check_folder(folder, tiny, tmp_path / "sheet.png", crops=tmp_path / "mine"))
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
