"""Captions and masks belong to pictures by one rule for names."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from mos_client.pictures.companions import find_companions, is_mask, is_picture, name_key
from mos_common.errors import PicturesError

HERE = Path("cats")


def found(pictures: list[str], beside: list[str], captions: list[str] = (), masks: list[str] = ()) -> dict:
    files = find_companions(
        [HERE / name for name in pictures],
        [HERE / name for name in [*pictures, *beside]],
        [HERE / "caption" / name for name in captions],
        [HERE / "mask" / name for name in masks],
    )
    return {
        picture.name: (
            [str(path.relative_to(HERE)) for path in each.captions],
            [str(path.relative_to(HERE)) for path in each.masks],
        )
        for picture, each in files.items()
    }


@pytest.mark.parametrize("caption", ["01.txt", "01.TXT", "01.Caption", "01.png.txt", "01.PNG.txt"])
def test_a_caption_is_named_after_its_picture_in_any_case(caption):
    assert found(["01.png", "02.png"], [caption]) == {"01.png": ([caption], []), "02.png": ([], [])}


@pytest.mark.parametrize(
    "mask",
    [
        "01.mask.png",
        "01.mask.PNG",
        "01.MASK.png",
        "01-masklabel.png",
        "01-MaskLabel.PNG",
        "01.mask.jpg",
        "01.png.mask.png",
    ],
)
def test_a_mask_is_named_after_its_picture_in_any_case_and_is_no_picture(mask):
    assert is_mask(Path(mask))
    assert not is_picture(Path(mask))
    assert found(["01.png"], [mask]) == {"01.png": ([], [mask])}


@pytest.mark.parametrize("mask", ["01.png", "01.PNG", "01.jpg", "01.mask.png", "01.png.png", "01-masklabel.png"])
def test_in_a_folder_for_masks_every_picture_is_a_mask(mask):
    assert found(["01.png"], [], masks=[mask]) == {"01.png": ([], [f"mask/{mask}"])}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_a_name_is_the_same_name_however_its_accents_are_spelled(form, other):
    picture, caption = unicodedata.normalize(form, "Café Größe.png"), unicodedata.normalize(other, "café größe.txt")
    assert found([picture], [caption]) == {picture: ([caption], [])}


def test_what_begins_alike_is_another_name():
    names = ["1.png", "10.png", "1.2.png"]
    assert found(names, ["1.txt", "1.2.txt"]) == {
        "1.png": (["1.txt"], []),
        "10.png": ([], []),
        "1.2.png": (["1.2.txt"], []),
    }


def test_the_files_beside_a_picture_come_first_and_ours_before_onetrainer_s():
    everything = found(["1.png"], ["1-masklabel.png", "1.mask.png", "1.txt"], captions=["1.txt"], masks=["1.png"])
    assert everything == {"1.png": (["1.txt", "caption/1.txt"], ["1.mask.png", "1-masklabel.png", "mask/1.png"])}


@pytest.mark.parametrize("pictures", [["x.png", "x.jpg"], ["01.png", "01.PNG"], ["é.png", "e\u0301.png"]])
def test_a_caption_or_mask_that_two_pictures_could_have_is_a_question(pictures):
    stem = Path(pictures[0]).stem
    for companion in (f"{stem}.txt", f"{stem}.mask.png"):
        with pytest.raises(PicturesError, match=r"could belong to .* and .*: name it after one of them"):
            found(pictures, [companion])
    assert found(pictures, []) == dict.fromkeys(pictures, ([], []))


def test_the_whole_name_of_a_picture_answers_that_question():
    assert found(["x.jpg", "x.png"], ["x.jpg.txt", "x.png.mask.png"]) == {
        "x.jpg": (["x.jpg.txt"], []),
        "x.png": ([], ["x.png.mask.png"]),
    }


@pytest.mark.parametrize(
    "name", ["01_mask.png", "01-mask.png", "01 mask.jpg", "01mask.png", "mask_01.png", "01_MASK.png", "01_alpha.png"]
)
def test_a_picture_that_looks_like_a_mask_of_another_is_a_question(name):
    with pytest.raises(PicturesError, match=r"looks like a mask of 01\.png: name it 01\.mask\."):
        found(["01.png", name], [])
    assert len(found(["02.png", name], [])) == 2, "of no other: it is a picture"


def test_onetrainer_s_pictures_to_condition_on_are_no_pictures():
    assert not is_picture(Path("01-condlabel.png"))
    assert not is_picture(Path("01-CondLabel.PNG"))


def test_names_that_differ_to_people_differ():
    assert len({name_key(name) for name in ("a.png", "ä.png", "b.png", "a .png", "a.jpg")}) == 5
