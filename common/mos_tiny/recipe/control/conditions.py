"""Composed pictures with their captions, and what an adapter reads of each: sketch or keypoints.

    python -m mos_tiny.recipe.control.conditions keypoints --out D --square 12000 --wide 4000

writes what `mos_tiny.recipe.compose` does, and condition_64.npy and condition_128.npy beside it.
"""

from __future__ import annotations

import json
from enum import StrEnum
from functools import cache
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import typer
from jaxtyping import UInt8
from PIL import Image

from mos_common.control.faces import Face, draw_faces
from mos_common.control.sketches import edges_of
from mos_common.flags import SeedType
from mos_common.shell import OnCount, counting, run
from mos_tiny.recipe import art_folder
from mos_tiny.recipe.art import SIDE, load_art
from mos_tiny.recipe.compose import WIDTHS, Placement, World, compose, place, save_pictures
from mos_tiny.recipe.scenes import HEIGHT, background


class Kind(StrEnum):
    """What an adapter reads."""

    SKETCH = "sketch"
    KEYPOINTS = "keypoints"


@cache
def keypoints_of_styles() -> dict[str, dict[str, list[float]]]:
    """Return where each style has its parts, in pixels of a sprite."""
    told: dict[str, dict[str, list[float]]] = json.loads((art_folder() / "keypoints.json").read_text())
    return told


def face_at(style: str, placed: Placement, width: int) -> Face:
    """Return the face of a placed person, in fractions of a picture of 64 x `width`."""
    own = keypoints_of_styles()[style]

    def across(x: float) -> float:
        return (placed.left + (SIDE - x if placed.mirrored else x) * placed.side / SIDE) / width

    def down(y: float) -> float:
        return (placed.top + y * placed.side / SIDE) / HEIGHT

    left, top, right, bottom = own["head"]
    eyes = sorted((across(x), down(y)) for x, y in (own["left_eye"], own["right_eye"]))
    sides = sorted((across(left), across(right)))
    mouth = (across(own["mouth"][0]), down(own["mouth"][1]))
    return Face(eyes[0], eyes[1], mouth, (sides[0], down(top), sides[1], down(bottom)))


def people(
    world: World, count: int, width: int, seed: int, on_count: OnCount | None = None
) -> tuple[np.ndarray, list[str], UInt8[np.ndarray, "count 64 width 3"]]:
    """Compose pictures of one person, or of two in wide ones, with captions and keypoints."""
    random = Random(seed)
    pictures, conditions = np.empty((2, count, HEIGHT, width, 3), np.uint8)
    captions = []
    for i in range(count):
        slots = width // SIDE
        canvas, where = background(width, random, world.icons)
        persons = [world.person(random) for _ in range(slots)]
        placed = [place(canvas, person, SIDE * k, SIDE, random) for k, person in enumerate(persons)]
        faces = [face_at(person.label["style"], at, width) for person, at in zip(persons, placed, strict=True)]
        pictures[i], conditions[i] = np.clip(canvas, 0, 255).astype(np.uint8), draw_faces(faces, HEIGHT, width)
        names = [person.caption for person in persons]
        said = names[0] if slots == 1 else f"{names[0]} on the left and {names[1]} on the right"
        captions.append(f"{said} {where}".replace(",,", ","))
        if on_count:
            on_count(i + 1, count, "")
    return pictures, captions, conditions


def sketch_of(picture: UInt8[np.ndarray, "height width 3"], random: Random) -> UInt8[np.ndarray, "height width 3"]:
    """Return a sketch with few or many lines, sharp ones or soft ones as of a hand."""
    low, finer = random.uniform(40, 150), random.choice([1, 1, 2, 3])
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    if finer > 1:
        image = image.resize((width * finer, height * finer), Image.Resampling.BICUBIC)
    lines = Image.fromarray(edges_of(np.asarray(image), low / finer, 2 * low / finer))
    reduced = np.asarray(lines.resize((width, height), Image.Resampling.BOX), np.float32) * finer
    return np.repeat(np.clip(reduced, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def conditioned_pictures(
    kind: Kind, world: World, count: int, width: int, seed: int, on_count: OnCount | None = None
) -> tuple[np.ndarray, list[str], UInt8[np.ndarray, "count 64 width 3"]]:
    """Compose pictures with captions and with what an adapter of a kind reads of them."""
    if kind is Kind.KEYPOINTS:
        return people(world, count, width, seed, on_count)
    pictures, captions = compose(world, count, width, seed, on_count)
    random = Random(seed - width)
    return pictures, captions, np.stack([sketch_of(picture, random) for picture in pictures])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.control.conditions sketch --out build/sketch")
def composed(
    kind: Annotated[Kind, typer.Argument(help="What the adapter will read.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    square: Annotated[int, typer.Option("--square", help="Number of pictures of 64 x 64.")] = 12_000,
    wide: Annotated[int, typer.Option("--wide", help="Number of pictures of 64 x 128.")] = 4_000,
    seed: Annotated[int, typer.Option("--seed", click_type=SeedType(), help="Random seed, from 0.")] = 51,
) -> None:
    """Compose pictures with captions and conditions to train an adapter on."""
    world = World(wider=load_art("wider"))
    for width, count in zip(WIDTHS, (square, wide), strict=True):
        with counting(f"64 x {width}") as on_count:
            made = conditioned_pictures(kind, world, count, width, seed + width, on_count)
        pictures, captions, conditions = made
        np.save(out_folder(out) / f"condition_{width}.npy", conditions, allow_pickle=False)
        save_pictures(out, width, pictures, captions)


def out_folder(out: Path) -> Path:
    """Return a folder that exists."""
    out.mkdir(parents=True, exist_ok=True)
    return out


if __name__ == "__main__":
    run(app)
