"""Draw with a model: concepts, regions, a sketch, seeds; and the gallery, which draws again."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, ImageOps, ImageStat
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from mos_client.inspection.own_scores import concepts_in
from mos_client.page.desk import Standing, standing_of
from mos_client.page.showing import show
from mos_client.page.work import Job
from mos_client.pictures.reading import DAMAGED
from mos_common.base_names import TINY
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.flags import MOST_SEED
from mos_common.json_models import JsonModelError, StrictModel, from_json
from mos_common.pages.actions import Sent

MOST_PICTURES = 8
_MOST_REGIONS, _MOST_MASK_BYTES, _MOST_SIDE = 12, 1 << 20, 2048
_PNG = "data:image/png;base64,"
_MOST_SKETCH_BYTES = 16 << 20
_WHITE_PAPER = 127  # of 255, on average
SKETCH = "sketch.png"


class Marked(StrictModel):
    """A region as it was drawn by mouse: a box in fractions of the picture, or a painted mask."""

    text: Annotated[str, Field(min_length=1, max_length=500)]
    box: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    mask: Annotated[str, Field(max_length=_MOST_MASK_BYTES)] | None = None


class AllMarked(StrictModel):
    """Every region of one drawing."""

    regions: Annotated[list[Marked], Field(max_length=_MOST_REGIONS)]


def show_draw(request: Request) -> Response:
    """Show the form, and the gallery."""
    standing = standing_of(request)
    tokens = [str(each.get("token")) for each in concepts_in(standing.models[0])] if standing.models else []
    values = {"tokens": tokens, "gallery": _gallery(standing), "sketches": standing.session.request.base == TINY}
    return show(request, "draw.html", standing, **values, most=MOST_PICTURES)


def draw(request: Request, sent: Sent) -> Response:
    """Write a scene, as `mos-client draw --scene` reads it, and draw it."""
    standing = standing_of(request)
    model = standing.models[0] if standing.models else standing.concept_file
    if model is None:
        raise RequestError("there is nothing to draw with yet: tune a concept, or wait for the round")
    chosen, text = sent.texts("concept"), sent.text("text", "")
    if not chosen and not text:
        raise RequestError("choose concepts, or say what to draw")
    folder = _new_folder(standing)
    seed, count = sent.number("seed", least=0, most=MOST_SEED), sent.number("count", least=1, most=MOST_PICTURES)
    scene: dict[str, Any] = {"prompt": " ".join(filter(None, [" and ".join(chosen), text]))}
    scene |= {"seeds": f"{seed}-{min(seed + count - 1, MOST_SEED)}"} if count > 1 else {"seed": seed}
    regions = [_region(each, number, folder) for number, each in enumerate(_marked(sent.text("regions", "") or "[]"))]
    if regions:
        scene["regions"] = regions
    elif len(chosen) > 1:
        scene["auto_layout"] = "side-by-side"
    sketches = [file.file.read(_MOST_SKETCH_BYTES) for file in sent.files("sketch")]
    if drawn := sent.text("drawn_sketch", ""):
        sketches.append(_png_in(drawn, "the sketch"))
    if sketches:
        _write_png(sketches[0], folder / SKETCH, "the sketch", white_lines=True)
        scene["controls"] = [{"adapter": "sketch", "picture": SKETCH}]
    write_atomically(folder / "scene.json", json.dumps(scene).encode())
    words: list[str | Path] = ["draw", model, "--scene", folder / "scene.json", "--out", folder / "picture.png"]
    words += ["--preview", folder / "preview.png", "--base", standing.session.request.base]
    _job(standing, folder.name).start(words)
    return RedirectResponse(f"/c/{standing.name}/draw#gallery", 303)


def again(request: Request, sent: Sent) -> Response:
    """Draw a picture of the gallery again, by the recipe in its file."""
    standing = standing_of(request)
    picture = _folder(standing, sent.text("picture")) / "picture.png"
    folder, model = _new_folder(standing), standing.models[0] if standing.models else standing.concept_file
    if model is None:
        raise RequestError("the model that drew it is not here")
    words: list[str | Path] = ["draw", model, "--again", picture, "--out", folder / "picture.png"]
    words += ["--base", standing.session.request.base]
    if (sketch := picture.with_name(SKETCH)).is_file():
        write_atomically(folder / SKETCH, sketch.read_bytes())
        words += ["--control", f"sketch: {folder / SKETCH}"]
    _job(standing, folder.name).start(words)
    return RedirectResponse(f"/c/{standing.name}/draw#gallery", 303)


def picture(request: Request) -> Response:
    """Return a picture of the gallery; while it is drawn, a preview."""
    folder = _folder(standing_of(request), request.path_params["number"])
    for name in ("picture.png", "preview.png"):
        if (folder / name).is_file():
            return FileResponse(folder / name, media_type="image/png")
    raise HTTPException(404)


def _gallery(standing: Standing) -> list[dict[str, Any]]:
    shown = []
    for folder in sorted((standing.state / "gallery").glob("[0-9]*"), reverse=True)[:60]:
        job, drawn = _job(standing, folder.name), (folder / "picture.png").is_file()
        preview = drawn or (folder / "preview.png").is_file()
        trouble = None if drawn else job.trouble or (None if job.runs else "it was not drawn to the end")
        shown.append(
            {"number": folder.name, "drawn": drawn, "preview": preview, "trouble": trouble, "said": _said(folder)}
            | {"compared": job.lines[-1] if drawn and not (folder / "scene.json").is_file() and job.lines else ""}
        )
    return shown


def _said(folder: Path) -> str:
    try:
        scene = json.loads((folder / "scene.json").read_bytes())
        return f"{scene['prompt']} · seed {scene.get('seed', scene.get('seeds'))}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "drawn again"


def _marked(text: str) -> list[Marked]:
    try:
        return from_json(AllMarked, f'{{"regions": {text}}}').regions
    except JsonModelError as error:
        raise RequestError(f"the regions cannot be read ({error}): draw them again") from error


def _region(marked: Marked, number: int, folder: Path) -> dict[str, Any]:
    if marked.box is not None:
        return {"prompt": marked.text, "box": marked.box}
    if marked.mask is None:
        raise RequestError(f"region {number + 1} has neither a box nor a mask: draw it again")
    name, what = f"mask-{number}.png", f"the mask of region {number + 1}"
    _write_png(_png_in(marked.mask, what), folder / name, what)
    return {"prompt": marked.text, "mask": name}


def _png_in(address: str, what: str) -> bytes:
    """Return the picture that a canvas has sent."""
    try:
        if not address.startswith(_PNG):
            raise ValueError(address[:20])
        return base64.b64decode(address[len(_PNG) :], validate=True)
    except ValueError as error:  # base64's own is one
        raise RequestError(f"{what} is damaged: draw it again") from error


def _write_png(data: bytes, file: Path, what: str, *, white_lines: bool = False) -> None:
    """Write a picture in grey. With `white_lines` a sketch on white paper becomes its negative."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if max(image.size) > _MOST_SIDE:
                raise RequestError(f"{what} is {image.width} x {image.height}: at most {_MOST_SIDE} a side")
            grey = image.convert("L")
    except DAMAGED as error:
        raise RequestError(f"{what} is no picture that can be read: give a PNG, JPEG or WebP") from error
    if white_lines and ImageStat.Stat(grey).mean[0] > _WHITE_PAPER:
        grey = ImageOps.invert(grey)
    out = io.BytesIO()
    grey.save(out, "PNG")
    write_atomically(file, out.getvalue())


def _new_folder(standing: Standing) -> Path:
    gallery = standing.state / "gallery"
    number = max((int(each.name) for each in gallery.glob("[0-9]*") if each.name.isdecimal()), default=0) + 1
    while True:
        try:
            (gallery / f"{number:04d}").mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return gallery / f"{number:04d}"


def _folder(standing: Standing, number: str) -> Path:
    folder = standing.state / "gallery" / number
    if not (number.isascii() and number.isdecimal() and folder.is_dir()):
        raise HTTPException(404)
    return folder


def _job(standing: Standing, number: str) -> Job:
    return Job(standing.state, f"draw-{number}")
