"""Find the captions and masks that belong to pictures, by one rule for names.

Names are compared without regard to case and to how Unicode spells an accent: `01.TXT` belongs to
`01.png`, and a Mac's `café.txt` to anybody's `café.png`. A caption or mask is named after its
picture, with or without the picture's ending: `01.txt`, `01.png.txt`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mos_client.pictures.reading import SUFFIXES
from mos_common.errors import PicturesError

CAPTION_SUFFIXES = (".txt", ".caption")
MASK_ENDINGS = (".mask", "-masklabel")  # ours and OneTrainer's
CONDITION_ENDING = "-condlabel"  # OneTrainer's pictures to condition on
DRAWN_ENDING = ".progress"  # what `mos-client tune` draws beside the concept file
IMAGE_FOLDERS, CAPTION_FOLDERS, MASK_FOLDERS = ("image", "images"), ("caption", "captions"), ("mask", "masks")
TABLES = ("metadata.jsonl", "metadata.csv")
OF_SYSTEMS = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir")
MASK_WORDS = "(?:masks?|masklabel|matte|alpha)"
LOOKS_LIKE_A_MASK = re.compile(rf"(?P<of>.+?)[ ._-]*{MASK_WORDS}|{MASK_WORDS}[ ._-]+(?P<after>.+)")


@dataclass
class Companions:
    """The files that belong to one picture, those beside it first."""

    captions: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)


def name_key(name: str) -> str:
    """Return what two names of files have in common if they are one name to people."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def is_of_a_system(name: str) -> bool:
    """Return True for what systems put into folders: hidden files, `._x.png`, `Thumbs.db`."""
    return name.startswith((".", "~$")) or name_key(name) in OF_SYSTEMS


def is_picture(path: Path) -> bool:
    """Return True if a file is, by its name, a picture and no mask."""
    key = name_key(path.name)
    return _suffix(key) in SUFFIXES and not _stem(key).endswith((*MASK_ENDINGS, CONDITION_ENDING, DRAWN_ENDING))


def is_caption(path: Path) -> bool:
    """Return True if a file is, by its name, a caption."""
    return _suffix(name_key(path.name)) in CAPTION_SUFFIXES


def is_mask(path: Path) -> bool:
    """Return True if a file is, by its name, a mask, wherever it lies."""
    key = name_key(path.name)
    return _suffix(key) in SUFFIXES and _stem(key).endswith(MASK_ENDINGS)


def find_companions(
    pictures: Sequence[Path],
    beside: Iterable[Path],
    in_caption_folders: Iterable[Path],
    in_mask_folders: Iterable[Path],
) -> dict[Path, Companions]:
    """Return the captions and masks of each picture.

    `beside` are the files in the pictures' folder; what lies in a folder for masks is a mask,
    whatever its name ends in.

    Raises:
        PicturesError: a caption or a mask could belong to two pictures, or a picture looks like
            the mask of another.

    """
    found = {picture: Companions() for picture in pictures}
    by_name: dict[str, list[Path]] = {}
    for picture in pictures:
        key = name_key(picture.name)
        for name in dict.fromkeys((key, _stem(key))):
            by_name.setdefault(name, []).append(picture)
    beside = list(beside)
    for path in [*filter(is_caption, beside), *filter(is_caption, in_caption_folders)]:
        for picture in _owner(path, _stem(name_key(path.name)), by_name):
            found[picture].captions.append(path)
    in_folders = [path for path in in_mask_folders if _suffix(name_key(path.name)) in SUFFIXES]
    ours_first = sorted(
        filter(is_mask, beside), key=lambda path: not _stem(name_key(path.name)).endswith(MASK_ENDINGS[0])
    )
    for path in [*ours_first, *in_folders]:
        for picture in _owner(path, _without_ending(_stem(name_key(path.name))), by_name):
            found[picture].masks.append(path)
    _ask_about_masks(pictures, by_name)
    return found


def _owner(path: Path, name: str, by_name: dict[str, list[Path]]) -> list[Path]:
    """Return the one picture that a file is named after, or none."""
    pictures = by_name.get(name, [])
    if len(pictures) > 1:
        listed = " and ".join(picture.name for picture in pictures)
        raise PicturesError(
            f"{path} could belong to {listed}: name it after one of them, such as "
            f"{pictures[0].name}{path.suffix if is_caption(path) else '.mask' + path.suffix}, or rename a picture"
        )
    return pictures


def _ask_about_masks(pictures: Sequence[Path], by_name: dict[str, list[Path]]) -> None:
    for picture in pictures:
        like = LOOKS_LIKE_A_MASK.fullmatch(_stem(name_key(picture.name)))
        if like and (others := by_name.get(like["of"] or like["after"])):
            raise PicturesError(
                f"{picture} looks like a mask of {others[0].name}: name it {others[0].stem}.mask{picture.suffix} "
                "if it is, rename it if it is a picture"
            )


def _without_ending(stem: str) -> str:
    return next((stem.removesuffix(ending) for ending in MASK_ENDINGS if stem.endswith(ending)), stem)


def _suffix(key: str) -> str:
    return Path(key).suffix


def _stem(key: str) -> str:
    return Path(key).stem
