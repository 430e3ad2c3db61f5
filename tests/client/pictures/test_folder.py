"""Folders of pictures in every layout: usable, skipped and held-back files, and captions."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from mos_client.pictures.captions import TEMPLATES
from mos_client.pictures.examples import load_examples, load_pictures
from mos_client.pictures.folder import FEWEST, Picture, find_pictures, pictures_digest, scan, split_pictures
from mos_client.pictures.marks import ANY_MARK, Marks
from mos_common.errors import PicturesError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def halves(mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue, 8 x 4 pixels."""
    picture = Image.new("RGB", (8, 4), RED)
    picture.paste(BLUE, (4, 0, 8, 4))
    return picture.convert(mode)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PicturesError, match=r"no folder of pictures at .*nowhere"):
        find_pictures(tmp_path / "nowhere")
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(PicturesError, match="no folder"):
        find_pictures(tmp_path / "file.png")


@pytest.mark.parametrize("count", range(FEWEST))
def test_fewer_than_three_pictures_are_refused(make_pictures, count):
    with pytest.raises(PicturesError, match=f"{count} pictures in .*at least 3"):
        find_pictures(make_pictures(count))


def test_pictures_are_found_by_name_and_nothing_else_is_looked_at(make_pictures):
    folder = make_pictures(4)
    halves().save(folder / "Z.JPG", format="JPEG")
    halves().resize((64, 64)).save(folder / "00.mask.png")
    (folder / "00.txt").write_text("a caption")
    (folder / "notes.md").write_text("x")
    (folder / "deeper").mkdir()
    halves().save(folder / "deeper" / "deep.png")
    assert [p.path.name for p in find_pictures(folder)] == ["00.png", "01.png", "02.png", "03.png", "Z.JPG"]


def test_a_broken_picture_is_reported_and_skipped_and_the_others_are_used(make_pictures, caplog):
    folder = make_pictures(5)
    (folder / "03.png").write_bytes(b"not a picture")
    (folder / "04.png").unlink()
    (folder / "04.png").mkdir()
    with caplog.at_level(logging.WARNING):
        pictures_found = find_pictures(folder)
    assert [p.path.name for p in pictures_found] == ["00.png", "01.png", "02.png"]
    assert [skipped.path.name for skipped in scan(folder).skipped] == ["03.png", "04.png"]
    assert "skipped: " in caplog.text
    assert "03.png cannot be read" in caplog.text


def test_too_few_that_are_left_are_an_error_that_says_what_was_wrong(make_pictures):
    folder = make_pictures(3)
    (folder / "01.png").write_bytes(b"")
    with pytest.raises(PicturesError, match=r"2 pictures in .*at least 3.*01\.png cannot be read"):
        find_pictures(folder)


def test_the_layout_of_the_paper_s_repository(make_pictures, tmp_path):
    root = tmp_path / "dataset"
    shutil.move(make_pictures(4), root / "image")
    for kind in ("caption", "mask"):
        (root / kind).mkdir()
    (root / "caption" / "02.txt").write_text("a photo of <TOK>")
    Image.new("L", (64, 64), 255).save(root / "mask" / "01.png")
    pictures_found = find_pictures(root)
    assert [p.path.name for p in pictures_found] == ["00.png", "01.png", "02.png", "03.png"]
    assert [p.captions for p in pictures_found] == [TEMPLATES, TEMPLATES, ("a photo of V",), TEMPLATES]
    assert [p.mask_file for p in pictures_found] == [None, root / "mask" / "01.png", None, None]


@pytest.mark.parametrize("name", ["01.mask.png", "01-masklabel.png", "mask/01.png", "masks/01.png"])
def test_masks_are_found_and_are_no_pictures(make_pictures, name):
    folder = make_pictures(4)
    (folder / name).parent.mkdir(exist_ok=True)
    Image.new("L", (64, 64), 255).save(folder / name)
    pictures_found = find_pictures(folder)
    assert [p.path.name for p in pictures_found] == ["00.png", "01.png", "02.png", "03.png"]
    assert [p.mask_file for p in pictures_found] == [None, folder / name, None, None]


def test_a_folder_named_image_may_be_given_itself_and_its_neighbours_are_found(make_pictures, tmp_path):
    shutil.move(make_pictures(3), tmp_path / "image")
    (tmp_path / "mask").mkdir()
    Image.new("L", (64, 64), 255).save(tmp_path / "mask" / "01.png")
    assert [p.mask_file for p in find_pictures(tmp_path / "image")] == [None, tmp_path / "mask" / "01.png", None]


def test_what_lies_beside_a_folder_of_another_name_is_somebody_else_s(make_pictures, tmp_path):
    folder = make_pictures(3, "cat")
    for kind, name in (("mask", "01.png"), ("caption", "01.txt")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).write_bytes(b"of another concept")
    assert [(p.mask_file, p.caption_file) for p in find_pictures(folder)] == [(None, None)] * 3


def test_a_picture_with_a_mask_that_cannot_be_used_is_skipped_by_name(make_pictures):
    folder = make_pictures(4)
    Image.new("L", (64, 32), 255).save(folder / "01.mask.png")
    (skipped,) = scan(folder).skipped
    assert skipped.path.name == "01.png"
    assert "64 x 32" in skipped.reason


@pytest.mark.parametrize(("count", "held"), [(3, 1), (4, 2), (5, 2), (12, 2)])
def test_the_last_two_are_held_back(make_pictures, count, held):
    tuned_on, held_back = split_pictures(make_pictures(count))
    names = [f"{i:02}.png" for i in range(count)]
    assert [p.path.name for p in tuned_on] == names[:-held]
    assert [p.path.name for p in held_back] == names[-held:]


def test_pictures_become_squares_of_the_base_s_size_cut_from_the_middle(tmp_path):
    """8 x 4 pixels: the middle 4 x 4 are red on the left, blue on the right."""
    halves().save(tmp_path / "a.png")
    (square,) = load_pictures([Picture(tmp_path / "a.png")], 4)
    assert square.shape == (3, 4, 4)
    assert square[:, :, 0].T.tolist() == [[1.0, -1.0, -1.0]] * 4
    assert square[:, :, -1].T.tolist() == [[-1.0, -1.0, 1.0]] * 4


def test_examples_are_the_latents_of_the_base_and_the_captions(sixteen, make_pictures):
    folder = make_pictures(3)
    (folder / "01.txt").write_text("V asleep\n")
    pictures = find_pictures(folder)
    examples = load_examples(sixteen, pictures)
    expected = sixteen.encode_pictures(load_pictures(pictures, 16))
    torch.testing.assert_close(torch.stack([e.views[0].latent for e in examples]), expected)
    assert [e.captions for e in examples] == [TEMPLATES, ("V asleep",), TEMPLATES]


def captions_of(folder: Path, name: str = "00.png", marks: Marks = ANY_MARK) -> tuple[str, ...]:
    (found,) = (picture for picture in scan(folder, marks).pictures if picture.path.name == name)
    return found.captions


@pytest.mark.parametrize(
    ("other", "text"),
    [("00.caption", "V up"), ("caption/00.txt", "V up"), ("metadata.jsonl", "V up"), ("00.TXT", "V up")],
)
def test_two_captions_of_one_picture_that_disagree_are_a_question_and_both_are_named(make_pictures, other, text):
    folder = make_pictures(4)
    (folder / "00.txt").write_text("V asleep\n")
    (folder / other).parent.mkdir(exist_ok=True)

    def write(caption: str) -> None:
        row = json.dumps({"file_name": "00.png", "text": caption})
        (folder / other).write_text(row if other.endswith("jsonl") else caption + "\r\n")

    write(text)
    with pytest.raises(PicturesError, match="two captions that disagree") as error:
        scan(folder)
    assert "00.txt" in str(error.value)
    assert Path(other).name in str(error.value)
    write("V asleep")
    assert captions_of(folder) == ("V asleep",), "twice the same is fine"
    write("")
    assert captions_of(folder) == ("V asleep",), "and an empty one says nothing"


@pytest.mark.parametrize("other", ["01-masklabel.png", "mask/01.png", "01.MASK.PNG"])
def test_two_masks_of_one_picture_that_disagree_are_a_question_and_both_are_named(make_pictures, other):
    folder = make_pictures(4)
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "01.mask.png")
    (folder / other).parent.mkdir(exist_ok=True)
    mask.convert("RGB").resize((128, 128), Image.Resampling.NEAREST).save(folder / other)
    assert scan(folder).pictures[1].mask_file is not None, "twice the same is fine"
    mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / other)
    with pytest.raises(PicturesError, match=r"01\.png .*two masks that disagree") as error:
        scan(folder)
    assert Path(other).name in str(error.value)


def test_captions_that_are_no_text_stop_before_any_picture_is_read_and_all_are_named(make_pictures, monkeypatch):
    folder = make_pictures(4)
    (folder / "00.txt").write_bytes("V im Käfig".encode("cp1252"))
    (folder / "02.caption").write_bytes("V up".encode("utf-16-le"))
    monkeypatch.setattr("mos_client.pictures.folder.read_picture", lambda path: pytest.fail("it was read"))
    with pytest.raises(PicturesError, match=r"00\.txt is not in UTF-8.*02\.caption holds zero bytes.*save it as UTF-8"):
        scan(folder)


def test_two_marks_in_a_folder_stop_and_a_mark_or_the_concept_decides(make_pictures):
    folder = make_pictures(4)
    (folder / "00.txt").write_text("V asleep")
    (folder / "01.txt").write_text("<cat> in a V-neck")
    assert captions_of(folder, "01.png") == ("V, <cat> in a V-neck",)
    with pytest.raises(PicturesError, match=r"2 ways \(V in 00\.txt, <cat> in 01\.txt\)"):
        scan(folder, Marks("<cat>"))
    assert captions_of(folder, "00.png", Marks(None, "<cat>")) == (r"<V>, \V asleep",)
    assert captions_of(folder, "01.png", Marks(None, "<cat>")) == ("V in a V-neck",)


def test_without_marks_captions_are_not_read(make_pictures):
    """To score or to attack a concept, nobody needs them."""
    folder = make_pictures(4)
    (folder / "00.txt").write_bytes(b"\xff\xff")
    assert [picture.captions for picture in find_pictures(folder, None)] == [TEMPLATES] * 4


def test_the_digest_is_of_names_bytes_and_captions(make_pictures, tmp_path):
    folder = make_pictures(4)
    digest = pictures_digest(find_pictures(folder))
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    os.utime(moved / "00.png", (0, 0))
    assert pictures_digest(find_pictures(moved)) == digest
    pictures_found = {digest}
    (moved / "00.txt").write_text("V sits")
    pictures_found.add(pictures_digest(find_pictures(moved)))
    halves().save(moved / "01.png")
    pictures_found.add(pictures_digest(find_pictures(moved)))
    (moved / "02.png").rename(moved / "02b.png")
    pictures_found.add(pictures_digest(find_pictures(moved)))
    assert len(pictures_found) == 4


def test_the_digest_of_an_ordinary_folder_is_that_of_release_0_1_0(make_pictures):
    """Name, bytes, captions and mask of each picture: what was tuned is kept under it."""
    folder = make_pictures(3)
    (folder / "00.txt").write_text("V asleep\nV's hat\n")
    (folder / "01.txt").write_text("cat, sitting\n")
    Image.new("L", (64, 64), 255).save(folder / "02.mask.png")
    captions = [("V asleep", "V's hat"), ("V, cat, sitting",), TEMPLATES]
    expected = hashlib.sha256()
    for i, lines in enumerate(captions):
        expected.update(f"{i:02}.png\0".encode() + hashlib.sha256((folder / f"{i:02}.png").read_bytes()).digest())
        expected.update("\n".join(lines).encode())
    expected.update(hashlib.sha256((folder / "02.mask.png").read_bytes()).digest())
    assert pictures_digest(find_pictures(folder)) == expected.hexdigest()
