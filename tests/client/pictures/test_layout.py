"""Folders as people have them: which pictures are taken, and when it is a question."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mos_client.pictures.folder import find_pictures, scan
from mos_common.errors import PicturesError


def fill(folder: Path, count: int = 3, first: int = 0, suffix: str = "png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.{suffix}")
    return folder


def names(folder: Path) -> list[str]:
    return [str(picture.path.relative_to(folder)) for picture in scan(folder).pictures]


def unused(folder: Path) -> dict[str, str]:
    return {str(each.path.relative_to(folder)): each.reason for each in scan(folder).unused}


@pytest.mark.parametrize("name", ["image", "images", "Image", "IMAGES"])
def test_the_paper_s_folder_is_taken_in_any_case(tmp_path, name):
    fill(tmp_path / name)
    (tmp_path / "Captions").mkdir()
    (tmp_path / "Captions" / "01.TXT").write_text("V asleep")
    assert names(tmp_path) == [f"{name}/0{i}.png" for i in range(3)]
    assert scan(tmp_path).pictures[1].captions == ("V asleep",)
    assert scan(tmp_path / name).pictures[1].captions == ("V asleep",), "or the folder itself is given"


def test_one_folder_of_kohya_s_is_taken_and_its_repeats_are_said_not_to_be_used(tmp_path):
    fill(tmp_path / "10_sks cat")
    (tmp_path / "10_sks cat" / "01.caption").write_text("cat, sitting")
    assert names(tmp_path) == [f"10_sks cat/0{i}.png" for i in range(3)]
    for given in (tmp_path, tmp_path / "10_sks cat"):
        (note,) = scan(given).layout
        assert "its 10 repeats are not used" in note
        assert scan(given).pictures[1].captions == ("V, cat, sitting",)


@pytest.mark.parametrize(
    ("folders", "count"),
    [
        (["10_ohwx dog", "10_sks cat", "1_dog"], 3),
        (["10_dog", "1_dog"], 2),
        (["image", "images"], 2),
        (["image", "10_dog"], 2),
    ],
)
def test_several_folders_are_a_question_that_lists_them_with_their_paths(tmp_path, folders, count):
    for i, name in enumerate(folders):
        fill(tmp_path / name, 3 + i)
    with pytest.raises(PicturesError, match=r"in several folders, and a concept has one: .*Which one") as error:
        find_pictures(tmp_path)
    for i, name in enumerate(folders):
        quoted = f"'{tmp_path / name}'" if " " in name else str(tmp_path / name)
        assert f"{quoted} ({3 + i} pictures)" in str(error.value)
    assert str(error.value).count("pictures)") == count


@pytest.mark.parametrize("beside", [1, 4])
@pytest.mark.parametrize("name", ["10_cat", "image"])
def test_pictures_beside_such_a_folder_are_a_question(tmp_path, beside, name):
    fill(tmp_path, beside)
    fill(tmp_path / name, 5)
    with pytest.raises(PicturesError, match=rf"holds {beside} pictures? itself \(00\.png.* others in .*{name} \(5"):
        scan(tmp_path)


@pytest.mark.parametrize("name", ["reg", "class_images", "reg/1_cat"])
def test_pictures_of_the_class_beside_a_folder_of_kohya_s_are_a_question(tmp_path, name):
    fill(tmp_path / "10_cat", 5)
    fill(tmp_path / name, 4)
    with pytest.raises(PicturesError, match="in several folders") as error:
        scan(tmp_path)
    assert f"{tmp_path / '10_cat'} (5 pictures), {tmp_path / name} (4 pictures)" in str(error.value)


def test_sub_folders_within_a_folder_of_kohya_s_are_not_looked_into(tmp_path):
    fill(tmp_path / "10_cat", 5)
    fill(tmp_path / "10_cat" / "old", 4)
    for given in (tmp_path, tmp_path / "10_cat"):
        assert len(names(given)) == 5
    assert "not looked into" in unused(tmp_path)["10_cat/old"]


@pytest.mark.parametrize("name", ["IMG.CR2", "cat.psd", "cat.jxl", "scan.pdf"])
def test_pictures_of_other_formats_are_named_where_too_few_are_left(tmp_path, name):
    fill(tmp_path, 2)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(PicturesError, match=rf"2 pictures .*not used: {name}: pictures of this format are not read"):
        find_pictures(tmp_path)


def test_an_empty_folder_of_kohya_s_is_no_question(tmp_path):
    fill(tmp_path)
    for name in ("10_cat", "log"):
        (tmp_path / name).mkdir()
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("inside", ["img/10_cat", "photos", "a/b/c", "train", "2023_holiday"])
def test_pictures_only_in_a_sub_folder_are_a_question_that_says_which(tmp_path, inside):
    fill(tmp_path / inside, 4)
    fill(tmp_path / "reg" / "1_cat", 2)
    with pytest.raises(PicturesError, match="holds pictures only in sub-folders") as error:
        find_pictures(tmp_path)
    assert f"{tmp_path / inside} (4 pictures)" in str(error.value)
    assert f"{tmp_path / 'reg' / '1_cat'} (2 pictures)" in str(error.value)


def test_other_sub_folders_beside_pictures_are_not_looked_into_and_this_is_said(tmp_path, caplog):
    fill(tmp_path)
    fill(tmp_path / "more", 7)
    (tmp_path / "more" / "deeper").mkdir()
    fill(tmp_path / "more" / "deeper", 2)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("x")
    assert unused(tmp_path) == {
        "more": "sub-folders are not looked into; it holds 7 pictures (00.png, 01.png, 02.png and 4 more)",
        "more/deeper": "sub-folders are not looked into; it holds 2 pictures (00.png, 01.png)",
        "notes": "sub-folders are not looked into; it holds 1 other file (a.md)",
    }
    find_pictures(tmp_path)
    assert "not used: more: sub-folders are not looked into" in caplog.text
    assert "notes" not in caplog.text, "a warning is for what was meant to be used"


def test_too_few_pictures_beside_a_sub_folder_name_it(tmp_path):
    fill(tmp_path, 1)
    fill(tmp_path / "more", 7)
    with pytest.raises(PicturesError, match=r"1 pictures in .*at least 3.*not used: more: .*7 pictures"):
        find_pictures(tmp_path)


def test_every_file_that_nobody_uses_is_listed_with_its_reason(tmp_path):
    fill(tmp_path / "image", 3)
    for name in ("mask", "caption"):
        (tmp_path / name).mkdir()
    (tmp_path / "caption" / "00.txt").write_text("V")
    (tmp_path / "caption" / "09.txt").write_text("V")
    fill(tmp_path / "mask", 1, first=8)
    for name in (
        "readme.txt",
        "notes.md",
        "old.psd",
        "image/05.mask.png",
        "image/01-condlabel.png",
        "image/00_mos.npz",
    ):
        (tmp_path / name).write_bytes(b"x")
    reasons = unused(tmp_path)
    assert {name: reason.split(",")[0].split(":")[0] for name, reason in reasons.items()} == {
        "caption/09.txt": "no picture has this name",
        "image/00_mos.npz": "it is neither a picture",
        "image/01-condlabel.png": "pictures to condition on (OneTrainer) have no use here",
        "image/05.mask.png": "no picture has this name",
        "mask/08.png": "no picture has this name",
        "notes.md": "it is neither a picture",
        "old.psd": "pictures of this format are not read",
        "readme.txt": "no picture has this name",
    }


def test_the_companions_of_a_broken_picture_are_nobody_else_s(tmp_path):
    fill(tmp_path)
    (tmp_path / "05.png").write_bytes(b"broken")
    (tmp_path / "05.txt").write_text("V")
    assert unused(tmp_path) == {}


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "._00.png", "._01.txt", "Thumbs.db", "THUMBS.DB", "desktop.ini", "~$notes.docx", ".hidden/00.png"],
)
def test_what_systems_put_into_folders_is_not_even_named(tmp_path, name):
    fill(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\0\x05\x16\x07")
    scanned = scan(tmp_path)
    assert len(scanned.pictures) == 3
    assert scanned.skipped == scanned.unused == ()


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", ".thumbnails"])
def test_folders_of_systems_are_not_even_named(tmp_path, name):
    fill(tmp_path)
    fill(tmp_path / name)
    assert unused(tmp_path) == {}


def test_a_pipe_a_folder_and_a_dead_link_with_the_names_of_pictures_are_skipped(tmp_path):
    fill(tmp_path)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    skipped = {each.path.name: each.reason for each in scan(tmp_path).skipped}
    assert set(skipped) == {"folder.png", "pipe.png", "link.png"}
    assert "it is no file" in skipped["pipe.png"]
    assert "No such file" in skipped["link.png"]


def test_of_many_sub_folders_the_first_are_listed(tmp_path):
    fill(tmp_path)
    for i in range(100):
        (tmp_path / "many" / f"{i:03}").mkdir(parents=True)
        (tmp_path / "many" / f"{i:03}" / "a.md").write_text("x")
    listed = unused(tmp_path)
    assert len(listed) == 21
    assert listed["many"] == "80 more folders below it are not looked into"


def test_what_tuning_drew_among_the_pictures_is_not_tuned_on(tmp_path):
    fill(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "cat.progress.png")
    assert names(tmp_path) == ["00.png", "01.png", "02.png"]
    assert unused(tmp_path) == {"cat.progress.png": "it was drawn while a concept was tuned"}
