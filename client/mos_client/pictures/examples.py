"""Prepare pictures for tuning: latents of every view, masks and captions.

Latents are cached on disk, so that the VAE runs once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mos_client.pictures.captions import mirrored_caption
from mos_client.pictures.folder import Picture, pictures_digest
from mos_client.pictures.reading import open_picture
from mos_client.pictures.views import View, bucket_for, bucket_sizes, mask_cells, views_of
from mos_common.base_model import Base
from mos_common.digests import digest_of_json
from mos_common.files import write_atomically

log = logging.getLogger(__name__)
LATENTS = "latents.safetensors"
READER = 2  # raised when pictures are read otherwise than before: latents of an earlier reading are no use


@dataclass(frozen=True)
class Encoded:
    """One view of a picture as the UNet sees it.

    `mask` is the share of each cell that the concept covers; None without a mask.
    """

    latent: Float[Tensor, "c h w"]
    mask: Float[Tensor, "h w"] | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Example:
    """One picture to tune on. All its views have the same shape."""

    views: tuple[Encoded, ...]
    captions: tuple[str, ...]

    def captions_of(self, view: Encoded) -> tuple[str, ...]:
        """Return the captions of a view; those of a mirrored view have left and right swapped."""
        return tuple(map(mirrored_caption, self.captions)) if view.mirrored else self.captions


def load_pictures(pictures: Sequence[Picture], size: int) -> Float[Tensor, "n 3 size size"]:
    """Return the middle square of each picture in [-1, 1], to compare drawings with."""
    squares = [ImageOps.fit(open_picture(p.path), (size, size), Image.Resampling.LANCZOS) for p in pictures]
    return torch.stack([_as_tensor(square) for square in squares])


def load_examples(
    base: Base, pictures: Sequence[Picture], *, crops: int = 1, mirror: bool = False, cache: Path | None = None
) -> list[Example]:
    """Return every view of every picture as a latent of `base`, cached in the folder `cache`.

    Raises:
        PicturesError: a picture can no longer be read.

    """
    wanted = digest_of_json([READER, base.fingerprint, str(base.dtype), pictures_digest(pictures), crops, mirror])
    cached = _read_cache(cache, wanted)
    sizes, examples, fresh = bucket_sizes(base), [], {}
    for i, picture in enumerate(pictures):
        read = picture.read()
        size = bucket_for(read.picture.size, sizes)
        views = views_of(read.picture, read.mask, size, crops=crops, mirror=mirror, seed=picture.path.name)
        encoded = []
        for j, view in enumerate(views):
            latent = cached.get(f"{i}.{j}")
            if latent is None:
                latent = base.encode_pictures(_as_tensor(view.of(read.picture))[None])[0].float().cpu()
            fresh[f"{i}.{j}"] = latent
            encoded.append(Encoded(latent, _mask_of(read.mask, view, latent), view.mirrored))
        examples.append(Example(tuple(encoded), picture.captions))
    if cache is not None and not cached:
        write_atomically(cache / LATENTS, save({k: v.contiguous() for k, v in fresh.items()}, {"of": wanted}))
    return examples


def _mask_of(mask: Image.Image | None, view: View, latent: Tensor) -> Tensor | None:
    if mask is None:
        return None
    return torch.from_numpy(mask_cells(mask, view, (latent.shape[2], latent.shape[1])).copy())


def _read_cache(folder: Path | None, wanted: str) -> dict[str, Tensor]:
    """Return the latents cached for exactly these pictures and settings; none if damaged."""
    try:
        data = (folder / LATENTS).read_bytes() if folder is not None else b""
        if wanted.encode() in data[: 8 + int.from_bytes(data[:8], "little")]:
            return load(data)
    except (OSError, SafetensorError) as error:
        log.debug("no cached latents: %s", error)
    return {}


def _as_tensor(picture: Image.Image) -> Float[Tensor, "3 h w"]:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1
