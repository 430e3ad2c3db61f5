"""Draw pictures into files that say what they are, for `mos-client draw`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from mos_client.drawing.controls import AskedControl, of_regions, read_controls
from mos_client.drawing.previews import Preview
from mos_client.drawing.provenance import Signature
from mos_client.drawing.scenes import AutoLayout
from mos_client.drawing.sheet import contact_sheet
from mos_common.auto_layout import named_in, side_by_side, where_attended
from mos_common.base_model import Base, load_base
from mos_common.drawing import Drawing
from mos_common.edlora import attached
from mos_common.errors import RequestError
from mos_common.files import check_writable, write_atomically
from mos_common.picture_metadata import metadata
from mos_common.pictures import as_image, image_bytes, picture_format
from mos_common.pipeline.attaching import with_own_named
from mos_common.pipeline.models import Opened, check_model_is_there, open_model
from mos_common.pipeline.request import Request, draw_request, recipe_of, say_what_is_not_used
from mos_common.progress import CountProgress
from mos_common.recipes import Recipe, digest_of_pixels
from mos_common.regions import Region, check_masks


def draw_picture(
    model: Path,
    prompt: str,
    out: Path,
    *,
    base: str = "tiny",
    regions: Sequence[Region] = (),
    auto_layout: AutoLayout | None = None,
    controls: Sequence[AskedControl] = (),
    seeds: Sequence[int] = (0,),
    how: Drawing | None = None,
    device: str | None = None,
    dtype: str | None = None,
    kit: Path | None = None,
    own: bool = True,
    preview: Path | None = None,
    signature: Signature | None = None,
    on_step: CountProgress | None = None,
) -> list[Path]:
    """Draw `prompt` with a fused model's folder or a concept file; return the files written.

    `out` is a PNG, JPEG or WebP by its suffix. With several seeds it is their contact sheet, and
    each picture lies beside it, named by its seed. With `auto_layout` the concepts of the prompt
    get regions by themselves, by the first seed. All pictures follow `controls`. With `own`, the
    concepts' own changes that lie beside a fused model draw them where they are named.

    Raises:
        RequestError: there is no such model, the prompt names a concept it does not have, `out`
            has another suffix, a mask is not of the picture's shape, a control does not fit, or the
            pictures do not fit into memory at once.
        DrawingError: a picture is not finite.
        BaseModelError, ConceptError, FusionError: the model does not fit the base, or is damaged.

    """
    check_model_is_there(model, kit)
    if auto_layout and regions:
        raise RequestError("--auto-layout and regions exclude each other: give one of them")
    if not auto_layout:
        of_regions(regions, controls)
    files = files_of(out, seeds)
    for file in [*files, *filter(None, [preview])]:
        check_writable(file)
        picture_format(file)
    loaded = load_base(base, device=device, dtype=dtype)
    opened = open_model(model, loaded, kit)
    request = Request((prompt,) * len(seeds), tuple(seeds), tuple(regions), how or Drawing())
    check_masks(regions, *request.how.sized_for(loaded))
    request = replace(request, controls=read_controls(controls, loaded, *request.how.sized_for(loaded)))
    if auto_layout:
        request = _laid_out(auto_layout, request, loaded, opened, seeds[0])
        of_regions(request.regions, controls)
    if own:
        opened = with_own_named(opened, model, loaded, request.drawn(), kit)
    recipe = recipe_of(request, loaded, opened)
    metadata(picture_format(out), recipe)  # refuses what the format cannot hold before anything is drawn
    say_what_is_not_used(request, opened, loaded)
    watched = Preview(loaded, preview) if preview else None
    images = images_of(request, loaded, opened, watched, on_step)
    for place, (file, image) in enumerate(zip(files, images, strict=True)):
        write_picture(image, file, recipe, place if place < len(seeds) else None, signature)
    return files


def files_of(out: Path, seeds: Sequence[int]) -> list[Path]:
    """Return the files of a drawing: `out`, and for several seeds one for each before it."""
    if len(seeds) == 1:
        return [out]
    return [*(out.with_name(f"{out.stem}-{seed}{out.suffix}") for seed in seeds), out]


def images_of(
    request: Request,
    base: Base,
    opened: Opened,
    preview: Preview | None = None,
    on_step: CountProgress | None = None,
) -> list[Image.Image]:
    """Draw a batch; return its pictures, and after several of them their contact sheet.

    Raises:
        RequestError, DrawingError: as `draw_picture`.

    """
    count = len(request.seeds)
    try:
        pictures = draw_request(request, base, opened, on_step=on_step, on_latents=preview.look if preview else None)
    except torch.OutOfMemoryError as error:
        raise RequestError(
            f"{count} pictures at once do not fit into the memory of {base.device}: draw fewer (--count), or smaller ones"
        ) from error
    images = [as_image(picture) for picture in pictures]
    if count > 1:
        images.append(contact_sheet(images, [f"seed {seed}" for seed in request.seeds]))
    if preview:
        preview.show(images[-1])
    return images


def write_picture(
    image: Image.Image, file: Path, recipe: Recipe, place: int | None, signature: Signature | None = None
) -> None:
    """Write one picture of a batch, or the contact sheet (`place` None), with its recipe."""
    kind = picture_format(file)
    own = recipe.model_copy(update={"place": place, "pixels": digest_of_pixels(image)})
    data = image_bytes(image, kind, **metadata(kind, own))
    write_atomically(file, signature.sign(data, kind) if signature else data)


def _laid_out(auto_layout: AutoLayout, request: Request, base: Base, opened: Opened, seed: int) -> Request:
    """Return the request with the prompt and the regions of a layout that nobody drew."""
    named = named_in(request.prompts[0], opened.vocabulary, opened.classes)
    if auto_layout == "side-by-side":
        regions = side_by_side(named)
    else:
        with attached(base, opened.changes):
            regions = where_attended(base, named, seed, opened.vocabulary, request.how)
    return replace(request, prompts=(named.told(),) * len(request.prompts), regions=tuple(regions))
