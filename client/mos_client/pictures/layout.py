"""Find where in a folder the pictures of one concept lie, in the layouts that people have.

They lie in the folder itself, in its `image/` or `images/` (the paper's repository), in its one
`10_name/` (kohya's scripts), or where its `metadata.jsonl` says (Hugging Face). Two of these are a
question, and other sub-folders are never looked into: a guess would tune several things as one.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mos_client.pictures.captions_table import CaptionTable, read_caption_table
from mos_client.pictures.companions import (
    CAPTION_FOLDERS,
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    TABLES,
    is_of_a_system,
    is_picture,
    name_key,
)
from mos_client.pictures.wording import counted, few
from mos_common.errors import PicturesError

REPEATS = re.compile(r"(\d{1,3})_\s*(?P<name>\S.*)")  # kohya's `10_cat`
MOST_ENTRIES, DEEPEST = 20_000, 4  # of sub-folders that are searched for pictures, to say where some are


@dataclass(frozen=True)
class Layout:
    """Where the pictures lie: `place` is their folder, `folder` the one that was given."""

    folder: Path
    place: Path
    pictures: tuple[Path, ...]
    tables: tuple[CaptionTable, ...] = ()
    notes: tuple[str, ...] = ()

    def companion_folders(self, parent: Path, names: Sequence[str]) -> list[Path]:
        """Return the folders for captions or masks that belong to the pictures in `parent`."""
        above = [parent.parent] if name_key(parent.name) in IMAGE_FOLDERS else []
        return [
            path
            for root in [parent, *above]
            for path in entries(root)
            if path.is_dir() and name_key(path.name) in names
        ]


def find_layout(folder: Path) -> Layout:
    """Return where the pictures of a folder lie.

    Raises:
        PicturesError: there is no such folder, its pictures lie in several places or only in
            sub-folders, or a table of captions cannot be used.

    """
    if not folder.is_dir():
        raise PicturesError(
            f"no folder of pictures at {folder}: give the folder that holds the pictures of one concept"
        )
    tables = tuple(map(read_caption_table, _tables(folder)))
    listed = [path for table in tables for path in listed_pictures(table) if path.parent != folder]
    places: dict[Path, list[Path]] = {}
    if own := [*filter(is_picture, entries(folder)), *dict.fromkeys(listed)]:
        places[folder] = own
    for sub in subfolders(folder):
        named = name_key(sub.name) in IMAGE_FOLDERS or _as_of_kohya(sub)
        inside = list(filter(is_picture, entries(sub))) if named else []
        if inside and not set(inside) & set(listed):
            places[sub] = inside
    if folder not in places and any(map(_as_of_kohya, places)):
        # What lies beside it may be as of the same scripts: pictures of the class.
        below = _with_pictures_below(folder).items()
        places |= {path: found for path, found in below if not any(map(path.is_relative_to, list(places)))}
    if len(places) > 1:
        raise PicturesError(_which(folder, places))
    if not places:
        _ask_for_a_subfolder(folder)
        return Layout(folder, folder, (), tables)
    ((place, pictures),) = places.items()
    if place != folder:
        tables = (*tables, *map(read_caption_table, _tables(place)))
    pictures.sort(key=lambda path: (path.name, path))
    return Layout(folder, place, tuple(pictures), tables, tuple(_repeats(place)))


def entries(folder: Path) -> list[Path]:
    """Return what a folder holds, by name, less what systems put there.

    Raises:
        PicturesError: it cannot be read.

    """
    try:
        found = [path for path in folder.iterdir() if not is_of_a_system(path.name)]
    except OSError as error:
        raise PicturesError(f"folder {folder} cannot be read ({error.strerror}): make it readable") from error
    return sorted(found, key=lambda path: path.name)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, less those with the name of a picture."""
    return [path for path in entries(folder) if path.is_dir() and not is_picture(path)]


def listed_pictures(table: CaptionTable) -> Iterator[Path]:
    """Yield the pictures that a table names and that are there."""
    folders: dict[Path, dict[str, Path]] = {}
    for key in table.captions:
        path: Path | None = table.path.parent
        for part in key.split("/"):
            if path is None or not path.is_dir():
                path = None
                break
            if path not in folders:
                folders[path] = {name_key(entry.name): entry for entry in entries(path)}
            path = folders[path].get(part)
        if path is not None and path.is_file():
            yield path


def files_below(folder: Path) -> dict[Path, tuple[list[str], list[str]]]:
    """Return, for a folder and those in it, the names of pictures and of other files.

    The search is bounded; hidden folders and links are left out.
    """
    found: dict[Path, tuple[list[str], list[str]]] = {}
    seen = 0
    for root, folders, files in os.walk(folder):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not is_of_a_system(name))
        if len(here.relative_to(folder).parts) >= DEEPEST or seen > MOST_ENTRIES:
            folders.clear()
        visible = sorted(name for name in files if not is_of_a_system(name))
        seen += len(files) + len(folders)
        pictures = [name for name in visible if is_picture(Path(name))]
        found[here] = (pictures, [name for name in visible if name not in set(pictures)])
    return found


def _tables(folder: Path) -> list[Path]:
    return [path for path in entries(folder) if name_key(path.name) in TABLES and path.is_file()]


def _with_pictures_below(folder: Path) -> dict[Path, list[Path]]:
    """Return the folders below one that hold pictures, less those for captions and masks."""
    names = (*CAPTION_FOLDERS, *MASK_FOLDERS)
    return {
        path: [path / name for name in pictures]
        for path, (pictures, _) in files_below(folder).items()
        if pictures and path != folder and name_key(path.name) not in names
    }


def _as_of_kohya(folder: Path) -> bool:
    return REPEATS.fullmatch(folder.name) is not None


def _repeats(place: Path) -> Iterator[str]:
    if repeats := REPEATS.fullmatch(place.resolve().name):
        yield (
            f"{place.resolve().name} is a folder as of kohya's scripts: its {int(repeats[1])} repeats are not used; "
            "every picture is shown equally often, and --steps says how long"
        )


def _which(folder: Path, places: dict[Path, list[Path]]) -> str:
    subs = _listed((path, len(pictures)) for path, pictures in places.items() if path != folder)
    if folder not in places:
        return f"{folder} holds pictures in several folders, and a concept has one: {subs}. Which one? Give its path"
    own = [path.name for path in places[folder]]
    return (
        f"{folder} holds {counted(len(own), 'picture')} itself ({few(own)}) and others in {subs}. "
        "Which ones are the concept? Give the path of the sub-folder, or move it away"
    )


def _ask_for_a_subfolder(folder: Path) -> None:
    """Name the sub-folders that hold pictures, if only they do.

    Raises:
        PicturesError: there are some.

    """
    found = [(path, len(pictures)) for path, pictures in _with_pictures_below(folder).items()]
    if found:
        raise PicturesError(
            f"{folder} holds pictures only in sub-folders: {_listed(found)}. Which one is the concept? Give its path"
        )


def _listed(places: Iterable[tuple[Path, int]]) -> str:
    return few([f"{shlex.quote(str(path))} ({counted(number, 'picture')})" for path, number in places], 8)
