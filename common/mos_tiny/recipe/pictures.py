"""Training pictures for the autoencoder, varied enough for it to draw unseen concepts.

They are compositions, sprites of the training art on plain backgrounds, and doodles: random
strokes and shapes in all colours, for edges and lines that the training art lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from mos_tiny.recipe.compose import World, picture
from mos_tiny.recipe.scenes import background
from mos_tiny.recipe.sprites import mirrored, paste

SHARES = (0.4, 0.15, 0.2, 0.25)
"""Shares of compositions, sprites on the world's backgrounds, sprites on gradients, and doodles."""

SWAPPED = 0.25  # share with permuted colour channels, for colours that the training art lacks
FINER = 4  # doodles are drawn this much larger, then reduced, for soft edges like rendered art
SIDE = 64


def as_tensor(pictures: UInt8[np.ndarray, "n height width 3"]) -> Float[Tensor, "n 3 height width"]:
    """Return the pictures as a tensor in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def training_picture(world: World, random: Random) -> np.ndarray:
    """Make one picture to reconstruct."""
    kind = random.choices(range(len(SHARES)), SHARES)[0]
    if kind == 0:
        return picture(world, random, SIDE)[0]
    if kind == 3:
        return doodle(random)
    sprite = world.subject(random).sprite
    if random.random() < 0.5:
        sprite = mirrored(sprite)
    canvas = background(SIDE, random, world.icons)[0] if kind == 1 else _random_gradient(random)
    paste(canvas, sprite, random.randint(-8, 8), random.randint(-8, 8))
    pixels: np.ndarray = np.clip(canvas, 0, 255).astype(np.uint8)
    return pixels


def doodle(random: Random) -> np.ndarray:
    """Draw ellipses, polygons and strokes, from thin to broad, on top of each other."""
    image = Image.fromarray(_random_gradient(random).astype(np.uint8)).resize((SIDE * FINER, SIDE * FINER))
    pen = ImageDraw.Draw(image)
    dark = _colour(random, 60)
    for _ in range(random.randint(3, 14)):
        colour = dark if random.random() < 0.5 else _colour(random, 255)
        corners = [
            (random.uniform(0, SIDE * FINER), random.uniform(0, SIDE * FINER)) for _ in range(random.randint(2, 5))
        ]
        reach, (x, y) = random.uniform(1.5, 18) * FINER, corners[0]
        outline, wide = random.choice([None, dark]), round(random.uniform(0.8, 3) * FINER)
        match random.randrange(4):
            case 0:
                box = (x - reach, y - reach * random.uniform(0.4, 1), x + reach, y + reach * random.uniform(0.4, 1))
                pen.ellipse(box, fill=colour, outline=outline, width=wide)
            case 1 if len(corners) > 2:
                pen.polygon(corners, fill=colour, outline=outline, width=wide)
            case 2:
                box = (x - reach, y - reach, x + reach, y + reach)
                pen.arc(box, random.uniform(0, 360), random.uniform(0, 360), fill=colour, width=wide)
            case _:
                pen.line(corners, fill=colour, width=wide, joint="curve")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def _colour(random: Random, most: int) -> tuple[int, int, int]:
    return random.randint(0, most), random.randint(0, most), random.randint(0, most)


def _random_gradient(random: Random) -> np.ndarray:
    top, bottom = ([random.randint(0, 255) for _ in range(3)] for _ in range(2))
    t = np.linspace(0, random.randint(0, 1), SIDE)[:, None, None]
    mixed = np.array(top, np.float32) * (1 - t) + np.array(bottom, np.float32) * t
    return np.broadcast_to(mixed, (SIDE, SIDE, 3)).astype(np.float32)


def training_batches(world: World, batch: int, seed: int) -> Iterator[Float[Tensor, "batch 3 64 64"]]:
    """Yield batches without end."""
    random = Random(seed)
    while True:
        pictures = [training_picture(world, random) for _ in range(batch)]
        for i in range(batch):
            if random.random() < SWAPPED:
                pictures[i] = pictures[i][..., random.sample(range(3), 3)]
        yield as_tensor(np.stack(pictures))
