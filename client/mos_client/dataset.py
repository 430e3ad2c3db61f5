"""A folder of pictures as something to tune on: latents and captions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError

from mos_common.errors import PicturesError

if TYPE_CHECKING:  # a command checks its folder before anything heavy is imported
    from torch import Tensor

    from mos_common.base_model import BaseModel

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
FEWEST = 3  # one to tune on is too few to tell the thing from its place; two are held back
HELD_BACK = 2
MAX_PIXELS = 64_000_000
TEMPLATES = ("photo of a V", "V", "a picture of V", "a close up of V")
NAMED = re.compile(r"<TOK>|<[a-z0-9][a-z0-9_-]*>|\bV\b")


@dataclass(frozen=True)
class Example:
    """One picture to tune on: its latent and its captions, in which `V` stands for the concept."""

    path: Path
    latent: Float[Tensor, "c h w"]
    captions: tuple[str, ...]


def split_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """(pictures to tune on, pictures held back to score identity on): the last two by name are held back.

    A folder of three keeps one back. Which ones does not depend on the machine.

    Raises:
        PicturesError: the folder is missing, holds fewer than three readable pictures, or one of them cannot be read.

    """
    paths = find_pictures(folder)
    held = HELD_BACK if len(paths) > FEWEST else 1
    return paths[:-held], paths[-held:]


def find_pictures(folder: Path) -> list[Path]:
    """Every readable picture of a folder, by name.

    Raises:
        PicturesError: there is no such folder, a picture is broken, or there are too few.

    """
    if not folder.is_dir():
        raise PicturesError(
            f"no folder of pictures at {folder}: give the folder that holds the pictures of one concept"
        )
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and ".mask" not in p.suffixes)
    for path in paths:
        open_picture(path)
    if len(paths) < FEWEST:
        raise PicturesError(
            f"{len(paths)} pictures in {folder}: at least {FEWEST} are needed ({', '.join(sorted(SUFFIXES))}), ten or so are good"
        )
    return paths


def open_picture(path: Path) -> Image.Image:
    """A picture as RGB, turned upright, transparent parts on white.

    Raises:
        PicturesError: it cannot be read; the message names the file.

    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > MAX_PIXELS:
                raise PicturesError(
                    f"{path} has {file.width} x {file.height} pixels, more than {MAX_PIXELS:,}: make it smaller"
                )
            upright = ImageOps.exif_transpose(file)
            if upright.has_transparency_data:
                layers = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
            return upright.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise PicturesError(
            f"picture {path} cannot be read ({type(error).__name__}): repair it or take it out of the folder"
        ) from error


def captions_of(path: Path) -> tuple[str, ...]:
    """The lines of `name.txt` beside a picture, with `V` for the concept; without such a file the templates.

    A caption may write the concept as V, <TOK> or any <name>; one that does not name it is given it in front.
    """
    file = path.with_suffix(".txt")
    if not file.is_file():
        return TEMPLATES
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return tuple(NAMED.sub("V", line) if NAMED.search(line) else f"V, {line}" for line in lines) or TEMPLATES


def pictures_digest(paths: Sequence[Path]) -> str:
    """Sha256 over the pictures' names, bytes and captions: the same folder gives the same concept."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
        digest.update("\n".join(captions_of(path)).encode())
    return digest.hexdigest()


def load_pictures(paths: Sequence[Path], size: int) -> Float[Tensor, "n 3 size size"]:
    """Pictures as squares in [-1, 1]: the middle of each, scaled to the side the base was trained on."""
    import torch
    from numpy import asarray

    squares = [ImageOps.fit(open_picture(path), (size, size), Image.Resampling.LANCZOS) for path in paths]
    return torch.stack([torch.from_numpy(asarray(square).copy()).permute(2, 0, 1) for square in squares]) / 127.5 - 1


def load_examples(base: BaseModel, paths: Sequence[Path]) -> list[Example]:
    """The pictures as latents of `base` (encoded once, not at every step) and their captions."""
    latents = base.encode_pictures(load_pictures(paths, base.picture_size)).float()
    return [Example(path, latent, captions_of(path)) for path, latent in zip(paths, latents, strict=True)]
