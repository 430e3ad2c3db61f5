"""Folders of pictures as participants would bring them, composed of what the base never saw."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from mos_common.files import write_atomically
from mos_tiny.recipe.compose import Subject, World
from mos_tiny.recipe.demonstration import CONTEXTS, picture_of

LEAST_CHANGE = 8  # of 255: a middle grey hardly changes when it is inverted, and is filled by its neighbours


def compose_pictures(folder: Path, name: str, views: Sequence[Subject], world: World, *, masks: bool = False) -> None:
    """Write twelve captioned pictures of one identity; the same name gives the same pictures.

    The last caption is written last. With `masks`, each picture has a mask of the subject: the
    pixels that change when the subject's colours are inverted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(name)
    for i, context in enumerate(CONTEXTS):
        view, before = views[i % len(views)], random.getstate()
        pixels, caption = picture_of(view.sprite, context, view.person, random, world)
        after = random.getstate()
        write_atomically(folder / f"{i + 1:02}.png", _png(pixels))
        write_atomically(folder / f"{i + 1:02}.txt", f"{caption}\n".encode())
        if masks:
            random.setstate(before)
            inverted = view.sprite.copy()
            inverted[..., :3] = 255 - inverted[..., :3]
            other, _ = picture_of(inverted, context, view.person, random, world)
            random.setstate(after)
            changed = np.abs(pixels.astype(int) - other.astype(int)).max(axis=2) > LEAST_CHANGE
            write_atomically(folder / f"{i + 1:02}.mask.png", _png((255 * changed).astype(np.uint8)))


def _png(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()
