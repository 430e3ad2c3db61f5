"""Read a folder of pictures: files side by side, the paper's layout, or kohya's.

    pictures/01.jpg                  the pictures; in kohya's layout within folders such as 10_cat/
    pictures/01.txt (or .caption)    captions, one per line
    pictures/01.mask.png             masks, white where the concept is;
                                     also 01-masklabel.png, or mask/01.png
    pictures/{image,caption,mask}/   the layout of the paper's repository

A transparent background is a mask too. Files that cannot be read are reported and left out.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mos_client.pictures.captions import read_captions
from mos_client.pictures.reading import SUFFIXES, read_mask, read_picture
from mos_common.digests import digest_of_file
from mos_common.errors import PicturesError

log = logging.getLogger(__name__)
FEWEST = 3  # with one to tune on, the thing cannot be told from its surroundings
HELD_BACK = 2
REPEATS = re.compile(r"\d+_.+")  # kohya's `10_cat`; the number is ignored, every picture is used equally often
IMAGE_FOLDERS, CAPTION_FOLDERS, MASK_FOLDERS = ("image", "images"), ("caption", "captions"), ("mask", "masks")
CAPTION_SUFFIXES = (".txt", ".caption")
MASK_ENDINGS = (".mask.png", "-masklabel.png")


@dataclass(frozen=True)
class Picture:
    """One usable picture, and the files with its captions and mask, if it has any."""

    path: Path
    caption_file: Path | None = None
    mask_file: Path | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        """Its captions, with `V` for the concept."""
        return read_captions(self.caption_file)


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Folder:
    """The usable and the skipped pictures of a folder, sorted by name."""

    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]


def scan(folder: Path) -> Folder:
    """Read every picture of a folder once, and return which are usable.

    Raises:
        PicturesError: there is no such folder.

    """
    if not folder.is_dir():
        raise PicturesError(
            f"no folder of pictures at {folder}: give the folder that holds the pictures of one concept"
        )
    usable, skipped = [], []
    for path in _candidates(folder):
        picture = Picture(
            path, _beside(path, CAPTION_SUFFIXES, CAPTION_FOLDERS), _beside(path, MASK_ENDINGS, MASK_FOLDERS)
        )
        try:
            size = read_picture(path).picture.size
            if picture.mask_file:
                read_mask(picture.mask_file, size)
        except PicturesError as error:
            skipped.append(Skipped(path, str(error)))
        else:
            usable.append(picture)
    return Folder(tuple(usable), tuple(skipped))


def find_pictures(folder: Path) -> list[Picture]:
    """Return every usable picture of a folder, by name; log those that are skipped.

    Raises:
        PicturesError: there is no such folder, or too few are usable; the message names skipped
            files.

    """
    scanned = scan(folder)
    for skipped in scanned.skipped:
        log.warning("skipped: %s", skipped.reason)
    if len(scanned.pictures) < FEWEST:
        because = "".join(f"; {skipped.reason}" for skipped in scanned.skipped[:3])
        raise PicturesError(
            f"{len(scanned.pictures)} pictures in {folder}: at least {FEWEST} are needed "
            f"({', '.join(sorted(SUFFIXES))}), about ten are good{because}"
        )
    return list(scanned.pictures)


def split_pictures(folder: Path) -> tuple[list[Picture], list[Picture]]:
    """Return (pictures to tune on, pictures held back for scoring): the last two by name.

    Of three pictures one is held back. The choice does not depend on the machine.

    Raises:
        PicturesError: the folder is missing or holds fewer than three usable pictures.

    """
    pictures = find_pictures(folder)
    held = HELD_BACK if len(pictures) > FEWEST else 1
    return pictures[:-held], pictures[-held:]


def pictures_digest(pictures: Sequence[Picture]) -> str:
    """Return the SHA-256 of names, bytes, captions and masks: equal folders give equal concepts."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.path.name}\0".encode())
        digest.update(bytes.fromhex(digest_of_file(picture.path)))
        digest.update("\n".join(picture.captions).encode())
        if picture.mask_file:
            digest.update(bytes.fromhex(digest_of_file(picture.mask_file)))
    return digest.hexdigest()


def _candidates(folder: Path) -> Iterator[Path]:
    """Yield files that look like pictures, by name, from the first layout that has any."""
    places = [
        [folder],
        [folder / name for name in IMAGE_FOLDERS],
        sorted(p for p in folder.iterdir() if REPEATS.fullmatch(p.name)),
    ]
    for place in places:
        within = [path for part in place if part.is_dir() for path in part.iterdir()]
        images = sorted(
            path for path in within if path.suffix.lower() in SUFFIXES and not path.name.endswith(MASK_ENDINGS)
        )
        if images:
            yield from images
            return


def _beside(picture: Path, endings: Sequence[str], folders: Sequence[str]) -> Path | None:
    """Return the file that belongs to a picture: `01.txt` beside `01.png`, or in `caption/`."""
    stem = picture.parent / picture.stem
    places = [stem.with_name(stem.name + ending) for ending in endings]
    above = [picture.parent.parent] if picture.parent.name in IMAGE_FOLDERS else []
    for parent in [picture.parent, *above]:
        plain = endings if endings is CAPTION_SUFFIXES else (".png",)
        places += [parent / name / f"{picture.stem}{ending}" for name in folders for ending in plain]
    return next((place for place in places if place.is_file()), None)
