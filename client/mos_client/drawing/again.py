"""Draw a picture again from its recipe, and say how near the two are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mos_client.drawing.controls import controls_again
from mos_client.drawing.picture import images_of, write_picture
from mos_client.drawing.provenance import Signature
from mos_common.base_model import Base, load_base
from mos_common.errors import BaseModelError, RequestError
from mos_common.files import check_writable
from mos_common.fingerprint import is_base, why_not
from mos_common.picture_metadata import read_pixels, read_recipe
from mos_common.pictures import picture_format
from mos_common.pipeline.attaching import with_own_of
from mos_common.pipeline.models import check_model_is_there, digest_of_model, open_model
from mos_common.pipeline.request import Request, recipe_of
from mos_common.progress import CountProgress
from mos_common.recipes import Recipe, digest_of_pixels, machine_of


@dataclass(frozen=True)
class Comparison:
    """How near a picture drawn again is to the first.

    `most` is the largest difference of a pixel's channel in 1/255, or None if it cannot be known,
    of a JPEG or after the size was changed. `changed` says what is not as it was when it was drawn.
    `touched`: the first one's pixels are not those that were drawn.
    """

    same: bool
    most: int | None
    changed: tuple[str, ...]
    touched: bool = False

    def said_of(self, picture: Path) -> str:
        """Return the comparison in words."""
        if self.same:
            since = f"; {picture}'s own pixels were changed since" if self.touched else ""
            return f"bit-equal to {picture} as it was drawn{since}"
        why = f" ({'; '.join(self.changed)})" if self.changed else ""
        if self.most is None:
            return f"not bit-equal to {picture}, which does not hold its pixels exactly, so by how much is unknown{why}"
        if self.most <= 1:
            return f"not bit-equal to {picture}, but within 1/255{why}"
        return f"not the same as {picture}: pixels differ by up to {self.most}/255{why}"


def draw_again(
    model: Path,
    picture: Path,
    out: Path,
    *,
    base: str = "tiny",
    device: str | None = None,
    dtype: str | None = None,
    kit: Path | None = None,
    signature: Signature | None = None,
    controls: Sequence[str] = (),
    on_step: CountProgress | None = None,
) -> Comparison:
    """Draw the picture of a recipe with the same model, in the batch and the place it had.

    It is drawn in the recipe's number format and with its number of threads, on the processor if it
    was; `device` and `dtype` say otherwise. `controls` are texts of `--control` that name the files
    of the recipe's conditions, in order.

    Raises:
        PicturesError: the picture has no recipe, or a damaged one.
        RequestError: the model or the file of a condition is another one.
        BaseModelError: the base is another one.
        Others: as `draw_picture`.

    """
    check_model_is_there(model, kit)
    recipe = read_recipe(picture)
    if (digest := digest_of_model(model)) != recipe.model.digest:
        raise RequestError(
            f"{picture} was drawn with the model {recipe.model.name} ({recipe.model.digest[:12]}), and {model} is "
            f"{digest[:12]}: give the model that drew it"
        )
    check_writable(out)
    picture_format(out)
    on_cpu = recipe.machine.device.startswith("cpu ")
    loaded = load_base(base, device=device or ("cpu" if on_cpu else None), dtype=dtype or recipe.machine.dtype)
    _check_base(recipe, loaded, picture)
    how, regions = recipe.drawing(), tuple(each.region() for each in recipe.regions)
    followed = controls_again(recipe.controls, controls, loaded, *how.sized_for(loaded))
    request = Request((recipe.prompt,) * len(recipe.seeds), tuple(recipe.seeds), regions, how, followed)
    with _threads(recipe.machine.threads if loaded.device.type == "cpu" else None):
        opened = with_own_of(recipe.own, open_model(model, loaded, kit), model, loaded, kit)
        now = recipe_of(request, loaded, opened)
        images = images_of(request, loaded, opened, on_step=on_step)
        changed = recipe.machine.differences(machine_of(loaded))
    image = images[-1 if recipe.place is None else recipe.place]
    compared = _compared(image, recipe, read_pixels(picture), picture, changed)
    write_picture(image, out, now, recipe.place, signature)
    return compared


def _compared(image: Image.Image, recipe: Recipe, before: Image.Image, file: Path, changed: list[str]) -> Comparison:
    same = digest_of_pixels(image) == recipe.pixels
    most = None
    if file_keeps_pixels(file) and before.size == image.size:
        most = int(np.abs(np.asarray(image, np.int16) - np.asarray(before, np.int16)).max())
    return Comparison(same, 0 if same else most, tuple(changed), touched=same and bool(most))


def file_keeps_pixels(file: Path) -> bool:
    """Return whether a picture's format keeps pixels exactly, as we write it."""
    with Image.open(file) as opened:
        return opened.format in ("PNG", "WEBP")


def _check_base(recipe: Recipe, base: Base, picture: Path) -> None:
    if not is_base(recipe.base, base):
        raise BaseModelError(
            f"{picture} was drawn on {recipe.base_name} ({recipe.base[:12]}), not on {base.name} "
            f"({base.fingerprint[:12]}){why_not(recipe.base, base)}: give that base model with --base"
        )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with as many threads as before: sums of another order have other last bits."""
    own = torch.get_num_threads()
    torch.set_num_threads(count or own)
    try:
        yield
    finally:
        torch.set_num_threads(own)
