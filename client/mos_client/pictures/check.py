"""Check a folder of pictures before tuning on it, for `mos-client check`."""

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
    """Yield the report line by line, and write the contact sheet to `out`.

    Raises:
        PicturesError: the folder is missing or holds too few usable pictures; the lines before say
            what is wrong with each.
        RequestError, StateError: `out` is in the folder of pictures, or cannot be written.

    """
    if out.resolve().parent == images.resolve():
        raise RequestError(
            f"--out {out} is in the folder of pictures and would be read as one of them: choose another place"
        )
    check_writable(out)
    folder = scan(images)
    yield f"{images}: {_count(len(folder.pictures), 'usable picture')}"
    for skipped in folder.skipped:
        yield f"  skipped: {skipped.reason}"
    if len(folder.pictures) < FEWEST:
        raise PicturesError(f"{len(folder.pictures)} usable pictures in {images}: at least {FEWEST} are needed")
    yield from _shapes(folder, base)
    captioned = sum(picture.captions != TEMPLATES for picture in folder.pictures)
    yield f"  captions: {captioned} of {len(folder.pictures)}; the others get {', '.join(map(repr, TEMPLATES))}"
    masked = sum(map(_masked, folder.pictures))
    yield f"  masks: {masked} of {len(folder.pictures)}"
    if masked < len(folder.pictures) and (model := model_on_disk()):
        yield f"  masks can be drawn for the others: mos-client check {images} --masks-with {model} --class WORD"
    _, held_back = split_pictures(images)
    yield f"  held back for scoring, never tuned on: {', '.join(picture.path.name for picture in held_back)}"
    remarks_by_path: dict[Path, list[str]] = {}
    for picture, remark in remarks(folder.pictures, base.picture_size):
        remarks_by_path.setdefault(picture.path, []).append(remark)
        yield f"  look at {picture.path.name}: it {remark}"
    write_contact_sheet(folder.pictures, held_back, remarks_by_path, bucket_sizes(base), out)
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
