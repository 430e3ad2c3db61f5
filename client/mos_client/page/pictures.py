"""Pictures: added, looked at as `check` does, captioned and removed."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from mos_client.page.desk import Standing, standing_of
from mos_client.page.showing import show
from mos_client.page.work import tuning_words
from mos_client.pictures.companions import CAPTION_SUFFIXES
from mos_client.pictures.folder import Folder, Picture, scan, split
from mos_client.pictures.reading import SUFFIXES, open_picture
from mos_common.errors import MosError, RequestError
from mos_common.files import write_atomically
from mos_common.pages.actions import Sent

_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_MOST_FILE_BYTES = 64 << 20
_MOST_CAPTION = 4000
_SIDE = 320


@dataclass(frozen=True)
class Shown:
    """One picture on the page, with the remarks of `check`; `used`: it has written the crop."""

    number: int
    name: str
    captions: str
    becomes: str
    editable: bool
    held_back: bool
    masked: bool
    used: bool
    remarks: list[str]


def start_check(standing: Standing) -> None:
    """Start `mos-client check` on the pictures as they are, unless it has been done."""
    job, request = standing.check, standing.session.request
    if standing.has_pictures and not job.log.exists():
        sheet = job.log.with_suffix(".png")
        words: list[str | Path] = [
            "check",
            request.images,
            "--concept",
            request.concept,
            "--class",
            request.class_word,
            "--out",
            sheet,
            "--crops",
            _crops(standing),
        ]
        job.start([*words, *tuning_words(standing.session)])


def show_pictures(request: Request) -> Response:
    """Show every picture with its caption, and what is said of it."""
    return _shown(request, standing_of(request))


def _shown(request: Request, standing: Standing, trouble: str = "") -> Response:
    start_check(standing)
    folder, job = None, standing.check
    if standing.has_pictures:
        try:
            folder = _scanned(standing)
        except MosError as error:
            trouble = trouble or str(error)
    shown = _described(standing, folder) if folder else []
    skipped = [each.reason for each in folder.skipped] if folder else []
    values = {"pictures": shown, "skipped": skipped, "trouble": trouble or (job.trouble or ""), "job": job}
    status = 400 if trouble else 200
    return show(request, "pictures.html", standing, status=status, sheet=_sheet(standing).is_file(), **values)


def _scanned(standing: Standing) -> Folder:
    request = standing.session.request
    return scan(request.images, request.marks)


def _described(standing: Standing, folder: Folder) -> list[Shown]:
    lines = [line.strip() for line in standing.check.lines]
    held = set(split(folder.pictures)[1]) if len(folder.pictures) > 1 else set()
    described = []
    for number, picture in enumerate(folder.pictures):
        beginning = f"look at {picture.path.name}: it "
        remarks = [line.removeprefix(beginning) for line in lines if line.startswith(beginning)]
        editable = picture.caption_file is None or picture.caption_file.suffix.lower() in CAPTION_SUFFIXES
        becomes = " / ".join(picture.captions)
        described.append(
            Shown(
                number=number,
                name=picture.path.name,
                captions="\n".join(picture.written),
                becomes=becomes,
                editable=editable,
                held_back=picture in held,
                masked=picture.mask_file is not None,
                remarks=remarks,
                used=_used(standing, number) is not None,
            )
        )
    return described


def add(request: Request, sent: Sent) -> Response:
    """Keep the chosen files beside the others, on this machine."""
    standing = standing_of(request)
    try:
        for chosen in sent.files("files"):
            data = chosen.file.read(_MOST_FILE_BYTES + 1)
            if len(data) > _MOST_FILE_BYTES:
                raise RequestError(f"{chosen.filename} is larger than {_MOST_FILE_BYTES >> 20} MB")
            write_atomically(standing.session.request.images / safe_name(chosen.filename or ""), data, mode=0o600)
    except MosError as error:
        return _shown(request, standing, str(error))
    return _back(standing)


def safe_name(name: str) -> str:
    """Return the name under which a stranger's file is kept: plain letters, never a path.

    Raises:
        RequestError: it is neither a picture nor a caption by its name.

    """
    last = re.split(r"[/\\]", name)[-1]
    plain = _UNSAFE.sub("-", last).strip("-.")[-120:].lstrip("-.")
    if Path(plain).suffix.lower() not in (*SUFFIXES, *CAPTION_SUFFIXES) or not Path(plain).stem:
        raise RequestError(
            f"{last[:80]!r} is neither a picture nor a caption: give {', '.join(sorted(SUFFIXES))} or .txt"
        )
    return plain


def save_captions(request: Request, sent: Sent) -> Response:
    """Write the captions that were changed, each in a file beside its picture."""
    standing = standing_of(request)
    try:
        for picture in _scanned(standing).pictures:
            text = sent.text(f"caption {picture.path.name}", "\n".join(picture.written)).replace("\r", "")
            if text != "\n".join(picture.written):
                _write_caption(picture, text)
    except MosError as error:
        return _shown(request, standing, str(error))
    return _back(standing)


def _write_caption(picture: Picture, text: str) -> None:
    if len(text) > _MOST_CAPTION:
        raise RequestError(f"the caption of {picture.path.name} has more than {_MOST_CAPTION} characters")
    file = picture.caption_file or picture.path.with_name(f"{picture.path.name}.txt")
    if file.suffix.lower() not in CAPTION_SUFFIXES:
        raise RequestError(f"the captions of {picture.path.name} are in {file.name}: change them there")
    write_atomically(file, text.encode())


def remove(request: Request, sent: Sent) -> Response:
    """Remove one picture, with its caption and mask, from the page's own folder."""
    standing = standing_of(request)
    picture = _picture(standing, sent.text("picture"))
    if standing.session.request.images != standing.state.resolve() / "pictures":
        return _shown(request, standing, "these pictures lie in a folder of yours: remove them there")
    for file in (picture.path, picture.caption_file, picture.mask_file):
        if file is not None and (file == picture.path or file.stem.startswith(picture.path.stem)):
            file.unlink(missing_ok=True)
    return _back(standing)


def thumbnail(request: Request) -> Response:
    """Return a small copy of one picture, by its name among the pictures that there are."""
    standing = standing_of(request)
    image = open_picture(_picture(standing, request.path_params["picture"]).path)
    image.thumbnail((_SIDE, _SIDE))
    return webp(image)


def used(request: Request) -> Response:
    """Return one picture as the base sees it, as `check` has written it."""
    file = _used(standing_of(request), request.path_params["number"])
    if file is None:
        raise HTTPException(404)
    return FileResponse(file, media_type="image/png")


def sheet(request: Request) -> Response:
    """Return the contact sheet of `check`: crops and masks as the base sees them."""
    try:
        return Response(_sheet(standing_of(request)).read_bytes(), media_type="image/png")
    except OSError as error:
        raise HTTPException(404) from error


def webp(image: Image.Image) -> Response:
    """Return a picture as an answer."""
    data = io.BytesIO()
    image.convert("RGB").save(data, "WEBP", quality=88)
    return Response(data.getvalue(), media_type="image/webp")


def _sheet(standing: Standing) -> Path:
    return standing.check.log.with_suffix(".png")


def _crops(standing: Standing) -> Path:
    return standing.check.log.with_suffix(".crops")


def _used(standing: Standing, number: int) -> Path | None:
    return next(_crops(standing).glob(f"{number:03d}-*.png"), None)


def _picture(standing: Standing, name: str) -> Picture:
    for picture in _scanned(standing).pictures:
        if picture.path.name == name:
            return picture
    raise HTTPException(404)


def _back(standing: Standing) -> Response:
    return RedirectResponse(f"/c/{standing.name}/pictures", 303)
