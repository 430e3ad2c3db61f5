"""Look at a folder of pictures before anything is tuned on it: what `mos-client check` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mos_client.pictures.captions import TEMPLATES
from mos_client.pictures.contact_sheet import write_contact_sheet
from mos_client.pictures.folder import FEWEST, Folder, Picture, scan, split_pictures
from mos_client.pictures.quality import remarks
from mos_client.pictures.reading import read_picture
from mos_client.pictures.segmentation import model_on_disk
from mos_client.pictures.views import bucket_for, bucket_sizes
from mos_common.base_model import Base
from mos_common.errors import PicturesError, RequestError
from mos_common.files import check_writable


def check_folder(images: Path, base: Base, out: Path) -> Iterator[str]:
    """Line by line what was found; the contact sheet is written to `out`.

    Raises:
        PicturesError: the folder is missing or holds too few usable pictures; what is wrong with each has been said.
        RequestError, StateError: the contact sheet would lie among the pictures, or cannot be written.

    """
    if out.resolve().parent == images.resolve():
        raise RequestError(f"--out {out} lies among the pictures and would be taken for one: choose another place")
    check_writable(out)
    found = scan(images)
    yield f"{images}: {_count(len(found.pictures), 'usable picture')}"
    for skipped in found.skipped:
        yield f"  skipped: {skipped.reason}"
    if len(found.pictures) < FEWEST:
        raise PicturesError(f"{len(found.pictures)} usable pictures in {images}: at least {FEWEST} are needed")
    yield from _shapes(found, base)
    captioned = sum(picture.captions != TEMPLATES for picture in found.pictures)
    yield f"  captions: {captioned} of {len(found.pictures)}; the others are called {', '.join(map(repr, TEMPLATES))}"
    masked = sum(map(_masked, found.pictures))
    yield f"  masks: {masked} of {len(found.pictures)}"
    if masked < len(found.pictures) and (model := model_on_disk()):
        yield f"  masks can be drawn for the others: mos-client check {images} --masks-with {model} --class WORD"
    _, held_back = split_pictures(images)
    yield f"  held back to score with, never tuned on: {', '.join(picture.path.name for picture in held_back)}"
    said: dict[Path, list[str]] = {}
    for picture, remark in remarks(found.pictures, base.picture_size):
        said.setdefault(picture.path, []).append(remark)
        yield f"  look at {picture.path.name}: it {remark}"
    write_contact_sheet(found.pictures, held_back, said, bucket_sizes(base), out)
    yield f"contact sheet: {out}"


def _shapes(scanned: Folder, base: Base) -> Iterator[str]:
    sizes = bucket_sizes(base)
    shapes = Counter(bucket_for(read_picture(picture.path).picture.size, sizes) for picture in scanned.pictures)
    listed = ", ".join(f"{count} at {width} x {height}" for (width, height), count in shapes.most_common())
    yield f"  shown to {base.name} at its sizes: {listed}"


def _masked(picture: Picture) -> bool:
    return picture.mask_file is not None or read_picture(picture.path).mask is not None


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
