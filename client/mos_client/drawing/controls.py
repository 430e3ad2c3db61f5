"""Conditions as people give them: texts of `--control`, the pictures and the adapters they name.

A picture may be a JSON file of keypoints, which are drawn, or one of which the edges are made.

A condition is asked for before the base is loaded, and read when it is there, since an adapter
must fit it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from mos_client.drawing.keypoints import draw_keypoints
from mos_client.pictures.reading import read_picture
from mos_common.aspect import same_shape
from mos_common.base_model import Base
from mos_common.control.adapters import Adapter, read_adapter
from mos_common.control.condition import Control
from mos_common.control.drawn import DrawnControl
from mos_common.control.sketches import edges_of
from mos_common.digests import digest_of_file
from mos_common.errors import RequestError
from mos_common.files import is_file, is_folder
from mos_common.regions import Region
from mos_tiny import adapter_folders

FORM = '"ADAPTER: PICTURE" or "ADAPTER: PICTURE @ weight=0.8, start=0, end=0.6, region=2, make=edges"'
MOST_CONTROLS = 16
_NUMBERS = ("weight", "start", "end")


@dataclass(frozen=True)
class AskedControl:
    """A condition that is not read yet; the meanings are those of `Control`, `region` is from 1.

    `adapter` is a folder, or the name of one that comes with `tiny`. With `edges` the condition is
    made of the picture.
    """

    adapter: str
    picture: Path
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    region: int | None = None
    edges: bool = False

    @property
    def folder(self) -> Path:
        """The adapter's folder."""
        return adapter_folders().get(self.adapter) or Path(self.adapter)

    def check_is_there(self) -> None:
        """Check that adapter and picture are there, before anything is loaded.

        Raises:
            RequestError: one is not.

        """
        if not is_folder(self.folder):
            known = ", ".join(adapter_folders())
            raise RequestError(f"no adapter at {self.adapter}: give a folder in diffusers' layout, or for tiny {known}")
        if not is_file(self.picture):
            raise RequestError(f"no picture of a condition at {self.picture}")


def parse_controls(texts: Sequence[str]) -> list[AskedControl]:
    """Read the texts of `--control`.

    Raises:
        RequestError: a text has another form, or there are too many.

    """
    if len(texts) > MOST_CONTROLS:
        raise RequestError(f"{len(texts)} controls: at most {MOST_CONTROLS} are drawn with")
    return [_parsed(text) for text in texts]


def read_controls(asked: Sequence[AskedControl], base: Base, height: int, width: int) -> tuple[Control, ...]:
    """Read adapters and pictures; each adapter is loaded once.

    Raises:
        RequestError: an adapter does not fit the base, or a picture would be stretched to the
            (height, width) in pixels of the drawing.
        PicturesError: a picture cannot be read.

    """
    adapters: dict[Path, Adapter] = {}
    read = list[Control]()
    for each in asked:
        each.check_is_there()
        if each.folder not in adapters:
            adapters[each.folder] = read_adapter(each.folder, base)
        adapter = adapters[each.folder]
        region = None if each.region is None else each.region - 1
        picture = _picture(each, height, width)
        told = DrawnControl(
            name=adapter.name,
            adapter=adapter.digest,
            picture=digest_of_file(each.picture),
            edges=each.edges,
            weight=each.weight,
            start=each.start,
            end=each.end,
            region=each.region,
        )
        read.append(Control(adapter, picture, each.weight, each.start, each.end, region, told))
    return tuple(read)


def controls_again(
    told: Sequence[DrawnControl], texts: Sequence[str], base: Base, height: int, width: int
) -> tuple[Control, ...]:
    """Read the conditions of a recipe, from the files that the texts of `--control` name in order.

    Raises:
        RequestError: they are not as many, say more than files, or are not the files that were
            drawn with.

    """
    if len(texts) != len(told):
        names = "; ".join(each.name for each in told) or "none"
        raise RequestError(
            f"the picture was drawn with {len(told)} controls ({names}) and {len(texts)} are given: give the adapter and "
            'the picture of each in order, as --control "ADAPTER: PICTURE"'
        )
    asked = list[AskedControl]()
    for text, recipe in zip(texts, told, strict=True):
        files = _parsed(text)
        if files != AskedControl(files.adapter, files.picture):
            raise RequestError(f"control {text!r}: with --again the recipe has all numbers; leave out what is after @")
        numbers = recipe.model_dump(include={"weight", "start", "end", "region", "edges"})
        asked.append(AskedControl(files.adapter, files.picture, **numbers))
    read = read_controls(asked, base, height, width)
    for each, recipe, given in zip(read, told, asked, strict=True):
        for what, path in (("adapter", given.folder), ("picture", given.picture)):
            before, now = getattr(recipe, what), getattr(each.told, what)
            if before != now:
                raise RequestError(
                    f"{path} is not the {what} of the condition {recipe.name} that was drawn with ({before[:12]}; this "
                    f"one is {now[:12]}): give that one"
                )
    return tuple(replace(each, told=recipe) for each, recipe in zip(read, told, strict=True))


def of_regions(regions: Sequence[Region], controls: Sequence[AskedControl]) -> None:
    """Check that conditions name regions that are there, before anything is loaded.

    Raises:
        RequestError: one does not.

    """
    for each in controls:
        if each.region is not None and not 1 <= each.region <= len(regions):
            known = f"1 to {len(regions)}" if regions else "none"
            raise RequestError(f"control {each.adapter}: no region {each.region}; known: {known}")


def _picture(asked: AskedControl, height: int, width: int) -> Image.Image:
    if asked.picture.suffix.lower() == ".json":
        return Image.fromarray(draw_keypoints(asked.picture, height, width))
    picture = read_picture(asked.picture).picture
    if not same_shape(picture.size, (width, height)):
        raise RequestError(
            f"the picture {asked.picture} of a condition is {picture.width} x {picture.height}, the drawing {width} x "
            f"{height}: give it the shape of the drawing, or the drawing another --width and --height"
        )
    if not asked.edges:
        return picture
    # Edges are made in the drawing's size, where their lines are one pixel wide.
    return Image.fromarray(edges_of(np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))))


def _parsed(text: str) -> AskedControl:
    files, at, options = text.rpartition(" @ ")
    if not at:
        files, options = text, ""
    adapter, colon, picture = files.partition(": ")
    if not colon or not adapter.strip() or not picture.strip():
        raise RequestError(f"control {text!r}: expected {FORM}")
    given: dict[str, object] = {}
    for part in filter(None, re.split(r"\s*,\s*", options.strip())):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name in given or name not in (*_NUMBERS, "region", "make"):
            raise RequestError(f"control {text!r}: {part!r}: expected each once of weight, start, end, region, make")
        given[name] = _value(text, name, value)
    edges = bool(given.pop("make", False))
    asked = AskedControl(adapter.strip(), Path(picture.strip()), edges=edges, **given)  # type: ignore[arg-type]
    asked.check_is_there()
    return asked


def _value(text: str, name: str, value: str) -> float | int | bool:
    try:
        if name == "make":
            if value != "edges":
                raise ValueError
            return True
        return int(value) if name == "region" else float(value)
    except ValueError:
        wanted = {"make": "edges", "region": "the number of a region, from 1"}.get(name, "a number")
        raise RequestError(f"control {text!r}: {name}={value}: expected {wanted}") from None
