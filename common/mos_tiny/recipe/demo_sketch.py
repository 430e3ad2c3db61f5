"""The sketch of the demonstration: outlines of a man on the left and a woman on the right.

    python -m mos_tiny.recipe.demo_sketch --out build/demo-sketch.png

makes `demo-sketch.png` again, pixel for pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from mos_common.control.sketches import edges_of
from mos_common.pictures import save_image
from mos_common.shell import run, say
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.scenes import HEIGHT, flat
from mos_tiny.recipe.sprites import paste, resized

SKETCHED = (("spiky", 627), ("bun", 1012))
"""The people sketched, by hair and number in the training set."""
SIDE = 60


def demo_sketch(world: World) -> Image.Image:
    """Return the outlines of two people side by side, whose hair is that of `<tom>` and `<sunny>`.

    Of the people with such hair and a smile, they are those whose mouth has the most outline.
    """
    canvas = flat("white", 2 * HEIGHT)
    for slot, (hair, i) in enumerate(SKETCHED):
        assert world.characters.labels[i]["hairKind"] == hair
        left = HEIGHT * slot + (HEIGHT - SIDE) // 2
        paste(canvas, resized(world.characters.pictures[i], SIDE), HEIGHT - SIDE, left)
    return Image.fromarray(edges_of(np.clip(canvas, 0, 255).astype(np.uint8)))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.demo_sketch --out build/demo-sketch.png")
def sketch(out: Annotated[Path, typer.Option("--out", help="The picture to write.")]) -> None:
    """Make the sketch of the demonstration again."""
    save_image(demo_sketch(World()), out)
    say(f"{out}")


if __name__ == "__main__":
    run(app)
