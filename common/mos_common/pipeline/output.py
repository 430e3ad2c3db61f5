"""What a drawing returns: its pictures, their seeds, and the recipe of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mos_common.errors import RequestError
from mos_common.picture_metadata import metadata
from mos_common.pictures import as_image, picture_format, save_image
from mos_common.recipes import Recipe, digest_of_pixels

OutputType = Literal["pil", "pt", "np", "latent"]
OUTPUTS: tuple[OutputType, ...] = ("pil", "pt", "np", "latent")


@dataclass(frozen=True)
class Drawn:
    """The result of a drawing, as diffusers' pipelines return theirs, with what they do not say.

    `images` are PIL images, or a tensor (n, 3, height, width) or array (n, height, width, 3) from 0
    to 1, or latents. `seeds` has the seed of each, None where a generator was given. `recipe` is
    that of the batch, and None if no recipe can say how it was drawn: with several prompts, a
    followed picture, a generator or a callback, or a scheduler with settings of its own.
    """

    images: Any
    seeds: tuple[int | None, ...]
    recipe: Recipe | None = None

    def save(self, file: str | Path) -> list[Path]:
        """Write the pictures as `mos-client draw` does, with their recipe; return their files.

        Several have their number in their name: `cats-0.png`, `cats-1.png`.

        Raises:
            RequestError: the suffix is none of a picture, or there are no PIL images.
            StateError: a file cannot be written.

        """
        file = Path(file)
        kind = picture_format(file)
        if not (isinstance(self.images, list) and self.images and isinstance(self.images[0], Image.Image)):
            raise RequestError('only PIL images are saved: draw with output_type="pil"')
        one = len(self.images) == 1
        files = [file if one else file.with_stem(f"{file.stem}-{place}") for place in range(len(self.images))]
        for place, (each, image) in enumerate(zip(files, self.images, strict=True)):
            told = {"place": place, "pixels": digest_of_pixels(image)}
            recipe = self.recipe.model_copy(update=told) if self.recipe else None
            save_image(image, each, **metadata(kind, recipe))
        return files


def as_output(pictures: Float[Tensor, "n channels height width"], output_type: OutputType) -> Any:
    """Return pictures in [-1, 1], or latents, as `output_type` says."""
    if output_type == "latent":
        return pictures.clone()
    if output_type == "pil":
        return [as_image(picture) for picture in pictures]
    shares = (pictures.clone() / 2 + 0.5).clamp(0, 1)
    return shares if output_type == "pt" else shares.permute(0, 2, 3, 1).numpy()


def check_output(output_type: str, others: Sequence[str] = OUTPUTS) -> None:
    """Check the kind of output that was asked for.

    Raises:
        RequestError: there is no such kind.

    """
    if output_type not in others:
        raise RequestError(f"output_type {output_type!r}: expected one of {', '.join(others)}")
