"""Tables of captions: `metadata.jsonl` and `metadata.csv`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mos_client.pictures.captions import TEMPLATES
from mos_client.pictures.folder import scan
from mos_common.errors import PicturesError


def jsonl(folder: Path, *rows: dict, name: str = "metadata.jsonl", **how: object) -> Path:
    (folder / name).write_text("\n".join(json.dumps(row, **how) for row in rows), encoding="utf-8")
    return folder / name


def captions(folder: Path) -> list[tuple[str, ...]]:
    return [picture.captions for picture in scan(folder).pictures]


def unused(folder: Path) -> dict[str, str]:
    return {each.path.name: each.reason for each in scan(folder).unused}


def test_rows_caption_the_pictures_that_they_name_and_other_columns_say_nothing(make_pictures):
    folder = make_pictures(4)
    jsonl(
        folder,
        {"file_name": "00.png", "text": "V asleep", "label": 3, "objects": {"bbox": [[1, 2]]}},
        {"file_name": "./02.PNG", "text": "a cat\non a mat"},
        {"file_name": "03.png", "text": None},
    )
    assert captions(folder) == [("V asleep",), TEMPLATES, ("V, a cat", "V, on a mat"), TEMPLATES]
    assert unused(folder) == {}
    assert scan(folder).pictures[0].caption_file == folder / "metadata.jsonl"


def test_a_csv_says_the_same(make_pictures):
    folder = make_pictures(3)
    (folder / "metadata.csv").write_bytes(
        '\ufefffile_name,text\r\n00.png,"V, asleep"\r\n02.png,"two\r\nlines"\r\n'.encode()
    )
    assert captions(folder) == [("V, asleep",), TEMPLATES, ("V, two", "V, lines")]


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("name", ["file_name", "image_file_name"])
def test_the_columns_that_people_have(make_pictures, name, column):
    folder = make_pictures(3)
    jsonl(folder, {name: "00.png", column: "V asleep"})
    assert captions(folder)[0] == ("V asleep",)


def test_a_list_of_texts_is_several_captions(make_pictures):
    folder = make_pictures(3)
    jsonl(folder, {"file_name": "00.png", "text": ["V asleep", "V at night"]})
    assert captions(folder)[0] == ("V asleep", "V at night")


def test_pictures_in_sub_folders_are_taken_where_a_table_names_them(make_pictures):
    folder = make_pictures(3, "root/data/a")
    root = folder.parent.parent
    jsonl(root, {"file_name": "data/a/00.png", "text": "V asleep"}, {"file_name": "data\\a\\01.png", "text": "V up"})
    assert [picture.path.name for picture in scan(root).pictures] == ["00.png", "01.png"]
    assert captions(root) == [("V asleep",), ("V up",)]
    assert unused(root) == {
        "a": "it holds 3 pictures (00.png, 01.png, 02.png); 2 are used, as a table of captions names them"
    }


def test_a_table_in_the_paper_s_folder_or_for_it_is_read(make_pictures, tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    shutil.move(make_pictures(3), root / "image")
    jsonl(root / "image", {"file_name": "00.png", "text": "V asleep"})
    assert captions(root)[0] == ("V asleep",)
    (root / "image" / "metadata.jsonl").unlink()
    jsonl(root, {"file_name": "image/01.png", "text": "V up"}, *({"file_name": f"image/{i}.png"} for i in ("00", "02")))
    assert captions(root) == [TEMPLATES, ("V up",), TEMPLATES]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "C:\\x.png", "a/../../x.png", "\\\\host\\x.png"])
def test_names_outside_the_folder_are_refused(make_pictures, name):
    folder = make_pictures(3)
    jsonl(folder, {"file_name": "00.png", "text": "V"}, {"file_name": name, "text": "V"})
    with pytest.raises(PicturesError, match=r"metadata\.jsonl names .* in row 2, which is outside its folder"):
        scan(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"file_name": "00.png"', "damaged in line 1"),
        ("\n[1]", "no JSON object in line 2"),
        ('{"text": "V"}', "no file_name in row 1 (it has text)"),
        ('{"file_name": 7, "text": "V"}', "no file_name in row 1"),
        ('{"file_name": "00.png", "text": 7}', "has 7 for text in row 1: a caption is text"),
        ('{"file_name": "00.png", "text": "V\\u0000"}', "the caption in row 1 holds zero bytes"),
        ('{"file_name": "00.png", "text": "V", "prompt": "V up"}', "disagree in row 1, text and prompt"),
        ('{"file_name": "00.png", "text": "V"}\n{"file_name": "00.PNG", "text": "V up"}', "disagree for 00.PNG"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_row(make_pictures, text, said):
    folder = make_pictures(3)
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(PicturesError) as error:
        scan(folder)
    assert str(folder / "metadata.jsonl") in str(error.value)
    assert said in str(error.value)


def test_a_csv_without_names_and_a_table_of_another_encoding_are_refused(make_pictures):
    folder = make_pictures(3)
    (folder / "metadata.csv").write_text("file;text\n00.png;V\n")
    with pytest.raises(PicturesError, match=r"metadata\.csv has no file_name in row 2 \(it has file;text\)"):
        scan(folder)
    (folder / "metadata.csv").write_bytes("file_name,text\n00.png,Käfig\n".encode("cp1252"))
    with pytest.raises(PicturesError, match=r"metadata\.csv is not in UTF-8"):
        scan(folder)


def test_a_line_end_of_unicode_within_a_text_is_no_end_of_a_row(make_pictures):
    folder = make_pictures(3)
    jsonl(folder, {"file_name": "00.png", "text": "V asleep\u2028V up"}, ensure_ascii=False)
    assert captions(folder)[0] == ("V asleep", "V up")


def test_what_a_table_names_and_is_not_there_and_a_table_without_captions_are_said(make_pictures):
    folder = make_pictures(3)
    jsonl(folder, {"file_name": "00.png", "text": "V"}, {"file_name": "gone.png", "text": "V"})
    assert unused(folder) == {"metadata.jsonl": "it names pictures that are not there: gone.png"}
    jsonl(folder, {"file_name": "00.png", "label": 1})
    assert unused(folder)["metadata.jsonl"].startswith("no row has a caption in a column text or caption")
