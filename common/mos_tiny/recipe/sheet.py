"""A sheet of drawings with fixed prompts and seeds, so that sheets can be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mos_common.base_model import Base, load_base
from mos_common.drawing import Drawing, draw
from mos_common.presets import TINY

SEED = 1
ENLARGED = 3
SQUARE = (
    "a red car on a white background",
    "an apple on a blue background",
    "a man with short black spiky hair, toon style, on a green background",
    "a woman with long blue hair, outline style, on a pink background",
    "a dog on the beach",
    "a house in the snow",
    "a dark-skinned woman with short pink curly hair, flat style, on a white background",
    "a blue car in the city",
    "a pizza on a yellow background",
    "a man with short brown hair and a beard and glasses, outline style, in the forest",
    "a woman with long orange hair and a blue shirt, flat style, at sunset",
    "a penguin in the snow",
    "a purple balloon at sea",
    "an empty picture in the forest",
    "an airplane on a blue background",
    "a yellow heart on a black background",
)
WIDE = (
    "a red car on the left and a dog on the right in a meadow",
    "a man with short black hair, toon style, on the left "
    "and a woman with long blue hair, outline style, on the right on the beach",
    "a blue balloon on the left and a pizza on the right on a white background",
    "a woman with long pink hair, outline style, next to a house at night",
)


def draw_prompts(
    base: Base, prompts: list[str], *, wide: bool = False, seed: int = SEED, steps: int = 20, batch: int = 32
) -> Float[Tensor, "n 3 64 width"]:
    """Draw each prompt once, each with its own seed."""
    settings = Drawing(steps=steps, guidance=TINY.guidance, width=2 * base.picture_size if wide else None)
    parts = [
        draw(
            base,
            prompts[i : i + batch],
            [seed * 100_003 + j for j in range(i, min(i + batch, len(prompts)))],
            how=settings,
        )
        for i in range(0, len(prompts), batch)
    ]
    return torch.cat(parts)


def as_bytes(pictures: Float[Tensor, "n 3 h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Return pictures in [-1, 1] as bytes."""
    pixels: UInt8[np.ndarray, "n h w 3"] = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def tiled(pictures: UInt8[np.ndarray, "n h w 3"], columns: int) -> UInt8[np.ndarray, "height width 3"]:
    """Tile the pictures in rows of `columns`; the last row is padded with white."""
    missing = -len(pictures) % columns
    padded = np.concatenate([pictures, np.full((missing, *pictures.shape[1:]), 255, np.uint8)])
    rows = padded.reshape(-1, columns, *pictures.shape[1:])
    return np.concatenate([np.concatenate(list(row), 1) for row in rows])


def save_sheet(rows: list[np.ndarray], file: Path) -> None:
    """Write blocks of equal width below each other, enlarged by nearest neighbour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = Image.fromarray(np.concatenate(rows))
    whole.resize((whole.width * ENLARGED, whole.height * ENLARGED), Image.Resampling.NEAREST).save(file, lossless=True)


def draw_sheet(base_folder: Path, file: Path, *, steps: int = 20) -> None:
    """Draw all prompts with the base in a folder, and write the sheet."""
    base = load_base(str(base_folder), device="cpu")
    square = as_bytes(draw_prompts(base, list(SQUARE), steps=steps))
    wide = as_bytes(draw_prompts(base, list(WIDE), wide=True, steps=steps))
    save_sheet([tiled(square, 8), tiled(wide, 4)], file)
