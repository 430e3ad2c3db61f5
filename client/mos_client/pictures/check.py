"""Check a folder of pictures before tuning on it, for `mos-client check`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from mos_client.pictures.captions import TEMPLATES
from mos_client.pictures.contact_sheet import write_contact_sheet, write_crops
from mos_client.pictures.folder import FEWEST, Folder, Picture, scan, split
from mos_client.pictures.layout import REPEATS
from mos_client.pictures.leftovers import lines_about
from mos_client.pictures.marks import ANY_MARK, Marks, texts_around
from mos_client.pictures.quality import remarks
from mos_client.pictures.segmentation import model_on_disk
from mos_client.pictures.views import bucket_for, bucket_sizes
from mos_client.pictures.wording import counted, few
from mos_common.base_model import Base
from mos_common.commands import command_line
from mos_common.errors import PicturesError, RequestError
from mos_common.files import check_writable, is_folder, replacing_folder
from mos_common.pictures import picture_format

MOST_CAPTIONS = 200  # shown, before and after


def check_folder(
    images: Path,
    base: Base,
    out: Path,
    marks: Marks = ANY_MARK,
    *,
    scanned: Folder | None = None,
    crops: Path | None = None,
) -> Iterator[str]:
    """Yield the report line by line, and write the contact sheet to `out`.

    In the folder `crops` every picture is written as the base sees it. `scanned` is what `scan`
    says of the folder, where the caller has asked already.

    Raises:
        PicturesError: the folder is missing, holds too few usable pictures, or something in it can
            be meant in two ways; the lines before say what is wrong with each.
        RequestError, StateError: `out` or `crops` is in the folder of pictures, or cannot be
            written, or `crops` holds something.

    """
    folder = scanned or scan(images, marks)
    _check_places(out, crops, {path.resolve() for path in (images, *(each.path.parent for each in folder.pictures))})
    yield f"{images}: {counted(len(folder.pictures), 'usable picture')}"
    for note in folder.layout:
        yield f"  {note}"
    for skipped in folder.skipped:
        yield f"  skipped: {skipped.reason}"
    for line in lines_about(folder.unused, images):
        yield f"  {line}"
    if len(folder.pictures) < FEWEST:
        raise PicturesError(f"{len(folder.pictures)} usable pictures in {images}: at least {FEWEST} are needed")
    sizes = bucket_sizes(base)
    seen = [
        (bucket_for(read.picture.size, sizes), read.mask is not None) for read in map(Picture.read, folder.pictures)
    ]
    shapes = Counter(size for size, _ in seen).most_common()
    listed = ", ".join(f"{count} at {width} x {height}" for (width, height), count in shapes)
    yield f"  shown to {base.name} at its sizes: {listed}"
    yield from _captions(folder, marks)
    masked = sum(has_mask for _, has_mask in seen)
    yield f"  masks: {masked} of {len(folder.pictures)}"
    if masked < len(folder.pictures) and (model := model_on_disk()):
        again = command_line("mos-client", "check", images, "--masks-with", model, "--class", "WORD")
        yield f"  masks can be drawn for the others: {again}"
    _, held_back = split(folder.pictures)
    yield f"  held back for scoring, never tuned on: {', '.join(picture.path.name for picture in held_back)}"
    remarks_by_path: dict[Path, list[str]] = {}
    found = ((picture.path, remark) for picture, remark in remarks(folder.pictures, base.picture_size))
    for path, remark in chain(found, folder.doubts):
        remarks_by_path.setdefault(path, []).append(remark)
        yield f"  look at {path.name}: it {remark}"
    yield from _notes(folder)
    if crops is not None:
        with replacing_folder(crops) as written:
            write_crops(folder.pictures, sizes, written)
        yield f"crops: {crops}"
    write_contact_sheet(folder.pictures, held_back, remarks_by_path, sizes, out)
    yield f"contact sheet: {out}"


def _check_places(out: Path, crops: Path | None, read_from: set[Path]) -> None:
    """Check that what is written is never read as a picture, and takes nothing else's place."""
    inside = f"--out {out}" if out.resolve().parent in read_from else ""
    if crops is not None and not read_from.isdisjoint({crops.resolve(), *crops.resolve().parents}):
        inside = f"--crops {crops}"
    if inside:
        raise RequestError(
            f"{inside} is in the folder of pictures and would be read as one of them: choose another place"
        )
    if crops is not None and is_folder(crops) and any(crops.iterdir()):
        raise RequestError(f"--crops {crops} holds something already: choose another place")
    check_writable(out)
    picture_format(out)


def _captions(folder: Folder, marks: Marks) -> Iterator[str]:
    """Yield how many pictures have captions, and what each caption becomes."""
    captioned = [picture for picture in folder.pictures if picture.written]
    yield f"  captions: {len(captioned)} of {len(folder.pictures)}; the others get {', '.join(map(repr, TEMPLATES))}"
    subject = marks.concept or "V"
    lines = [
        f"    {picture.path.name}: {before!r} becomes {subject.join(texts_around(after))!r}"
        for picture in captioned
        for before, after in zip(picture.written, picture.captions, strict=True)
    ]
    yield from lines[:MOST_CAPTIONS]
    if len(lines) > MOST_CAPTIONS:
        yield f"    and {len(lines) - MOST_CAPTIONS} more"
    yield from _word_of_the_folder([line for picture in captioned for line in picture.written], folder, marks)


def _word_of_the_folder(lines: Sequence[str], folder: Folder, marks: Marks) -> Iterator[str]:
    """Yield a question if no caption has a mark, and most have the word of kohya's folder."""
    named = REPEATS.fullmatch(folder.pictures[0].path.resolve().parent.name)
    if named is None or marks.mark is not None or any(map(marks.places, lines)):
        return
    word = named["name"].split()[0]
    having = sum(bool(Marks(mark=word).places(line)) for line in lines) if re.search(r"\w", word) else 0
    if having > len(lines) / 2:
        question = f"does it stand for the concept? --mark {word}"
        yield f"  look at the captions: {having} of {len(lines)} have {word!r}: {question}"


def _notes(folder: Folder) -> Iterator[str]:
    """Yield what was done to pictures to read them, one line for each thing done."""
    by_note: dict[str, list[str]] = {}
    for path, note in folder.notes:
        by_note.setdefault(note, []).append(path.name)
    for note, names in by_note.items():
        yield f"  read {few(names)}: {note}"
