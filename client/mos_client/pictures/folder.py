"""Read a folder of pictures: which can be used, with which captions and masks.

    pictures/01.jpg                  the pictures
    pictures/01.txt (or .caption)    captions, one per line; also caption/01.txt, or metadata.jsonl
    pictures/01.mask.png             masks, white where the concept is;
                                     also 01-masklabel.png, or mask/01.png

`layout.py` says in which folders pictures are looked for, `companions.py` which files belong to a
picture. A transparent background is a mask too. Pictures that cannot be read are reported and left
out; whatever could be meant in two ways is an error that names both.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from mos_client.pictures.captions import TEMPLATES, read_lines, with_v
from mos_client.pictures.companions import CAPTION_FOLDERS, MASK_FOLDERS, Companions, find_companions, name_key
from mos_client.pictures.layout import Layout, entries, find_layout
from mos_client.pictures.leftovers import Unused, lines_about, unused_files
from mos_client.pictures.marks import ANY_MARK, Marks
from mos_client.pictures.masks import MARKED, marks_nothing, mask_remark
from mos_client.pictures.reading import SUFFIXES, Read, read_mask, read_picture
from mos_client.pictures.wording import FEW, few
from mos_common.digests import digest_of_file
from mos_common.errors import PicturesError

log = logging.getLogger(__name__)
FEWEST = 3  # with one to tune on, the thing cannot be told from its surroundings
HELD_BACK = 2
SAME_MASK = 0.01  # a share of the pixels in which two files of one mask may differ


@dataclass(frozen=True)
class Picture:
    """One usable picture, the files with its captions and mask, if it has any, and its captions.

    `written` are the captions as they stand in `caption_file`; in `captions` `V` is the concept
    (`marks.texts_around` reads them).
    """

    path: Path
    caption_file: Path | None = None
    mask_file: Path | None = None
    captions: tuple[str, ...] = TEMPLATES
    written: tuple[str, ...] = ()

    def read(self) -> Read:
        """Return the picture with the mask that counts: that of its file, or its own transparency.

        Raises:
            PicturesError: the picture or its mask cannot be read.

        """
        read = read_picture(self.path)
        if self.mask_file is None:
            return read
        mask = read_mask(self.mask_file, read.picture.size, turned=read.turned)
        if remark := mask_remark(mask):
            read = replace(read, doubts=(f"has a mask {self.mask_file.name} that is {remark}",))
        if marks_nothing(mask):
            return read
        if read.mask is not None:
            read = replace(read, notes=(*read.notes, f"is partly transparent, but its mask is {self.mask_file.name}"))
        return replace(read, mask=mask)


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Folder:
    """The contents of a folder: usable and skipped pictures, sorted by name, and unused files.

    `notes` say what was done to each picture to read it, `doubts` what its owner should look at,
    `layout` how the folder was understood.
    """

    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]
    unused: tuple[Unused, ...] = ()
    notes: tuple[tuple[Path, str], ...] = ()
    doubts: tuple[tuple[Path, str], ...] = ()
    layout: tuple[str, ...] = ()


def scan(folder: Path, marks: Marks | None = ANY_MARK) -> Folder:
    """Read every picture of a folder once, and return which are usable.

    Captions name the concept by `marks`; with None they are not read.

    Raises:
        PicturesError: there is no such folder, a caption is no text that we read, or something can
            be meant in two ways: the folder of the pictures, a caption, a mask, the mark.

    """
    layout = find_layout(folder)
    companions = _companions(layout)
    captioned = _captioned(layout, companions, marks) if marks is not None else {}
    usable, skipped, notes, doubts, two = [], [], [], [], []
    for path in layout.pictures:
        masks = companions[path].masks
        picture = captioned.get(path, Picture(path))
        picture = replace(picture, mask_file=masks[0] if masks else None)
        try:
            read = picture.read()
            if _disagree([read_mask(mask, read.picture.size, turned=read.turned) for mask in masks]):
                two.append(f"{path.name} ({' and '.join(mask.name for mask in masks)})")
        except PicturesError as error:
            skipped.append(Skipped(path, str(error)))
        else:
            usable.append(picture)
            notes += [(path, note) for note in read.notes]
            doubts += [(path, doubt) for doubt in read.doubts]
    if two:
        raise PicturesError(f"{few(two)}: two masks that disagree, of one picture in {folder}: keep one of them")
    used = {*layout.pictures, *(table.path for table in layout.tables)}
    used.update(path for each in companions.values() for path in [*each.captions, *each.masks])
    unused = tuple(unused_files(layout, used))
    return Folder(tuple(usable), tuple(skipped), unused, tuple(notes), tuple(doubts), layout.notes)


def find_pictures(folder: Path, marks: Marks | None = ANY_MARK) -> list[Picture]:
    """Return every usable picture of a folder, by name; log what is skipped or not used.

    Raises:
        PicturesError: as `scan` raises, or too few are usable; the message names skipped files.

    """
    scanned = scan(folder, marks)
    for skipped in scanned.skipped:
        log.warning("skipped: %s", skipped.reason)
    for path, doubt in scanned.doubts:
        log.warning("look at %s: it %s", path, doubt)
    unused = list(lines_about(tuple(each for each in scanned.unused if each.meant), folder))
    for line in unused:
        log.warning("%s", line)
    if len(scanned.pictures) < FEWEST:
        reasons = [skipped.reason for skipped in scanned.skipped[:FEW]] + unused[:FEW]
        raise PicturesError(
            f"{len(scanned.pictures)} pictures in {folder}: at least {FEWEST} are needed "
            f"({', '.join(sorted(SUFFIXES))}), about ten are good{''.join(f'; {reason}' for reason in reasons)}"
        )
    return list(scanned.pictures)


def split_pictures(folder: Path, marks: Marks | None = ANY_MARK) -> tuple[list[Picture], list[Picture]]:
    """Return (pictures to tune on, pictures held back for scoring) of a folder, as `split` does.

    Raises:
        PicturesError: as `find_pictures` raises.

    """
    return split(find_pictures(folder, marks))


def split(pictures: Sequence[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Return (pictures to tune on, pictures held back for scoring): the last two by name.

    Of three pictures one is held back. The choice does not depend on the machine.
    """
    held = HELD_BACK if len(pictures) > FEWEST else 1
    return list(pictures[:-held]), list(pictures[-held:])


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


def _companions(layout: Layout) -> dict[Path, Companions]:
    found: dict[Path, Companions] = {}
    for parent in dict.fromkeys(path.parent for path in layout.pictures):
        in_folders = [
            [path for folder in layout.companion_folders(parent, names) for path in entries(folder) if path.is_file()]
            for names in (CAPTION_FOLDERS, MASK_FOLDERS)
        ]
        beside = [path for path in entries(parent) if path.is_file()]
        found |= find_companions([path for path in layout.pictures if path.parent == parent], beside, *in_folders)
    return found


def _captioned(layout: Layout, companions: Mapping[Path, Companions], marks: Marks) -> dict[Path, Picture]:
    """Return the pictures with their captions, which have been checked together."""
    unread, two, chosen = [], [], {}
    for path in layout.pictures:
        given: dict[Path, tuple[str, ...]] = {}
        for file in companions[path].captions:
            try:
                given[file] = read_lines(file)
            except PicturesError as error:
                unread.append(str(error))
        given |= dict(_from_tables(layout, path))
        sources = {file: lines for file, lines in given.items() if lines} or given
        if len(set(sources.values())) > 1:
            two.append(f"{path.name} ({' and '.join(file.name for file in sources)})")
        chosen[path] = next(iter(sources.items()), (None, ()))
    if unread:
        raise PicturesError("; ".join(unread[:FEW]) + (f"; and {len(unread) - FEW} more" if unread[FEW:] else ""))
    if two:
        raise PicturesError(
            f"{few(two)}: two captions that disagree, of one picture in {layout.folder}: keep one of them"
        )
    marks.check({_shown(file, path): lines for path, (file, lines) in chosen.items() if lines})
    return {
        path: Picture(path, file, captions=with_v(lines, marks), written=lines)
        for path, (file, lines) in chosen.items()
    }


def _from_tables(layout: Layout, picture: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    for table in layout.tables:
        if picture.is_relative_to(table.path.parent):
            lines = table.captions.get(name_key(picture.relative_to(table.path.parent).as_posix()))
            if lines:
                yield table.path, lines


def _shown(file: Path | None, picture: Path) -> str:
    """Return the name of a caption for messages: its file, or its row in a table."""
    assert file is not None
    return file.name if name_key(file.stem).startswith(name_key(picture.stem)) else f"{file.name} for {picture.name}"


def _disagree(masks: Sequence[Image.Image]) -> bool:
    marked = [np.asarray(mask) >= MARKED for mask in masks]
    return any(float((marked[0] != other).mean()) > SAME_MASK for other in marked[1:])
