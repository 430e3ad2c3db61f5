"""The demonstration concepts: three faces and two icons that the base never saw.

Each has twelve captioned pictures.

    python -m mos_tiny.recipe.demonstration --out build/concepts

makes the folder `concepts/` again, pixel for pixel.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from mos_common.files import write_atomically
from mos_common.shell import run, say
from mos_tiny.recipe.art import load_art
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.scenes import HEIGHT, flat, scene
from mos_tiny.recipe.sprites import Sprite, mirrored, paste, resized
from mos_tiny.recipe.world import SCENES

CONTEXTS = (
    *("beach", "white", "meadow", "red", "night", "green"),
    *("snow", "yellow", "sunset", "teal", "forest", "blue"),
)


@dataclass(frozen=True)
class Demonstration:
    """A concept to show: its name, its views in the art, and its credit."""

    name: str
    class_word: str
    art_set: str
    label: tuple[tuple[str, object], ...]
    credit: str
    licence: str
    seed: int

    @property
    def views(self) -> list[Sprite]:
        """The pictures without background; an icon has one."""
        art = load_art(self.art_set)
        return [art.pictures[i] for i in art.where(**dict(self.label))]


DEMONSTRATIONS = (
    Demonstration(
        "tom",
        "man",
        "concepts",
        (("style", "toonHead"), ("id", 0)),
        "ToonHead by Johan Melin, rendered with DiceBear",
        "CC BY 4.0",
        1,
    ),
    Demonstration(
        "coral",
        "woman",
        "concepts",
        (("style", "personas"), ("id", 1)),
        "Personas by Draftbit, rendered with DiceBear",
        "CC BY 4.0",
        2,
    ),
    Demonstration(
        "ginger",
        "cat",
        "objects",
        (("style", "fluent"), ("icon", "cat-face")),
        "Fluent Emoji by Microsoft",
        "MIT",
        3,
    ),
    Demonstration(
        "sunny",
        "woman",
        "concepts",
        (("style", "toonHead"), ("id", 3)),
        "ToonHead by Johan Melin, rendered with DiceBear",
        "CC BY 4.0",
        4,
    ),
    Demonstration(
        "rex",
        "dog",
        "objects",
        (("style", "fluent"), ("icon", "dog-face")),
        "Fluent Emoji by Microsoft",
        "MIT",
        5,
    ),
)


def picture_of(sprite: Sprite, context: str, person: bool, random: Random, world: World) -> tuple[np.ndarray, str]:
    """Put the sprite on a colour or in a scene, and return picture and caption (with V for it)."""
    if context in SCENES:
        canvas, where = scene(context, 64, random, world.icons), SCENES[context]
    else:
        canvas, where = flat(context, 64), f"on a {context} background"
    side = random.randint(48, 64)
    if random.random() < 0.5:
        sprite = mirrored(sprite)
    x = round(32 - side / 2 + random.uniform(-5, 5))
    y = HEIGHT - side if person else int((HEIGHT - side) * random.uniform(0.3, 0.8))
    paste(canvas, resized(sprite, side), y, x)
    return np.clip(canvas, 0, 255).astype(np.uint8), f"V {where}"


def write_concept(shown: Demonstration, folder: Path, world: World) -> None:
    """Write a folder as a participant would bring it: pictures, captions and credit."""
    random, views = Random(shown.seed), shown.views
    for i, context in enumerate(CONTEXTS):
        person = shown.art_set == "concepts"
        pixels, caption = picture_of(views[i % len(views)], context, person, random, world)
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        write_atomically(folder / f"{i + 1:02}.png", png.getvalue())
        write_atomically(folder / f"{i + 1:02}.txt", f"{caption}\n".encode())
    about = {"name": f"<{shown.name}>", "class": shown.class_word, "art": shown.credit, "licence": shown.licence}
    write_atomically(folder / "concept.json", (json.dumps(about, indent=2) + "\n").encode())


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.demonstration --out build/concepts")
def demonstration(
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it gets one folder for each concept.")],
) -> None:
    """Make the demonstration concepts again."""
    world = World()
    for shown in DEMONSTRATIONS:
        write_concept(shown, out / shown.name, world)
        say(f"{out / shown.name}: {len(CONTEXTS)} pictures")


if __name__ == "__main__":
    run(app)
