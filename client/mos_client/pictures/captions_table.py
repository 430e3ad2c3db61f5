"""Read a table of captions: `metadata.jsonl` or `metadata.csv` of Hugging Face's image folders.

Every row names a picture by `file_name`, relative to the table, and has its caption in `text`;
other columns say nothing to us.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from mos_client.pictures.captions import caption_lines
from mos_client.pictures.companions import name_key
from mos_common.errors import PicturesError
from mos_common.text_files import NotTextError, clean_text, read_text_file

NAME_COLUMNS, TEXT_COLUMNS = ("file_name", "image_file_name"), ("text", "caption", "prompt")


@dataclass
class CaptionTable:
    """The captions of pictures, by the key of their path below the table's folder.

    `names` are these paths as they are written; `columns` are those of the table.
    """

    path: Path
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    columns: set[str] = field(default_factory=set)

    @property
    def has_captions(self) -> bool:
        """True if any row has a caption."""
        return any(self.captions.values())


def read_caption_table(path: Path) -> CaptionTable:
    """Read a table of captions.

    Raises:
        PicturesError: it cannot be read, has no names of pictures, names a file outside its folder,
            or has two captions for one picture.

    """
    table = CaptionTable(path)
    try:
        text = read_text_file(path)
    except NotTextError as error:
        raise PicturesError(f"{path} {error}") from error
    except OSError as error:
        raise PicturesError(f"{path} cannot be read ({error.strerror}): make it readable") from error
    rows = _rows_of_json(path, text) if path.suffix.casefold() == ".jsonl" else _rows_of_csv(path, text)
    for number, row in rows:
        table.columns |= set(row)
        name = _name(path, number, row)
        key, captions = name_key(name), _captions(path, number, row)
        if table.captions.get(key) and captions and table.captions[key] != captions:
            raise PicturesError(
                f"{path} has two captions that disagree for {name}, the second in row {number}: keep one"
            )
        table.names[key] = name
        table.captions[key] = captions or table.captions.get(key, ())
    return table


def _rows_of_json(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):  # a string may hold other line ends
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PicturesError(
                f"{path} is damaged in line {number} ({error}): write one JSON object a line"
            ) from error
        if not isinstance(row, dict):
            raise PicturesError(
                f"{path} has no JSON object in line {number}: write one a line, with file_name and text"
            )
        yield number, row


def _rows_of_csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows = csv.DictReader(re.split(r"(?<=\n)", text.replace("\r\n", "\n").replace("\r", "\n")), restkey="")
    try:
        for number, row in enumerate(rows, 2):
            yield number, {name.strip(): value for name, value in row.items() if name}
    except csv.Error as error:
        raise PicturesError(
            f"{path} is damaged in line {rows.line_num + 1} ({error}): write one picture a line"
        ) from error


def _name(path: Path, number: int, row: Mapping[str, Any]) -> str:
    name = next((row[column] for column in NAME_COLUMNS if row.get(column)), None)
    if not isinstance(name, str):
        listed = ", ".join(map(str, row)) or "nothing"
        raise PicturesError(f"{path} has no file_name in row {number} (it has {listed}): name the picture of each row")
    if re.fullmatch(r"[\w -]+(\.[\w -]+)*", name):  # most tables; a path takes ten times as long
        return name
    windows = PureWindowsPath(name)
    parts = PurePosixPath(windows.as_posix()).parts
    if windows.anchor or name.startswith("/") or ".." in parts:
        raise PicturesError(
            f"{path} names {name!r} in row {number}, which is outside its folder: give names below {path.parent}"
        )
    return "/".join(part for part in parts if part != ".")


def _captions(path: Path, number: int, row: Mapping[str, Any]) -> tuple[str, ...]:
    given: dict[str, tuple[str, ...]] = {}
    for column in TEXT_COLUMNS:
        value = row.get(column)
        texts = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(text, str) for text in texts):
            raise PicturesError(f"{path} has {value!r} for {column} in row {number}: a caption is text")
        try:
            lines = tuple(line for text in texts for line in caption_lines(clean_text(text)))
        except NotTextError as error:
            raise PicturesError(f"{path}: the caption in row {number} {error}") from error
        if lines:
            given[column] = lines
    if len(set(given.values())) > 1:
        listed = " and ".join(given)
        raise PicturesError(f"{path} has two captions that disagree in row {number}, {listed}: keep one column of them")
    return next(iter(given.values()), ())
