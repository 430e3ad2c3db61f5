"""The features that classifiers read, and two attributes that need no learning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mos_common.scores import ImageScorer
from mos_tiny.recipe.scenes import flat
from mos_tiny.recipe.sprites import to_hsv
from mos_tiny.recipe.world import HUES, PALETTE

Pictures = Float[Tensor, "n 3 height width"]


def image_features(pictures: Pictures) -> Float[Tensor, "n features"]:
    """Return the image scorer's features: for nouns, classes and styles."""
    return ImageScorer().features(pictures)


def thumbnail(pictures: Pictures, side: int = 16) -> Float[Tensor, "n features"]:
    """Return the pictures reduced to `side` x `side` pixels, flattened: for backgrounds."""
    return adaptive_avg_pool2d(pictures, side).flatten(1)


def colours(pictures: Pictures) -> Float[Tensor, "n features"]:
    """Return colour counts beside a faint thumbnail: for hair, shirts and coloured things."""
    return torch.cat([colour_counts(pictures), thumbnail(pictures) / 16], dim=1)


READERS: dict[str, Callable[[Pictures], Float[Tensor, "n features"]]] = {
    reader.__name__: reader for reader in (image_features, thumbnail, colours)
}


def colour_counts(pictures: Pictures, levels: int = 6) -> Float[Tensor, "n features"]:
    """Return the root of each colour's share, in the upper five eighths and in the whole."""
    counts = []
    for part in (pictures[:, :, : pictures.shape[2] * 5 // 8], pictures):
        level = ((part.clamp(-1, 1) + 1) / 2 * (levels - 1)).round().long()
        index = (level[:, 0] * levels + level[:, 1]) * levels + level[:, 2]
        each = index.flatten(1)
        count = torch.zeros(len(each), levels**3).scatter_add_(1, each, torch.ones(each.shape))
        counts.append((count / each.shape[1]).sqrt())
    return torch.cat(counts, dim=1)


def flat_background(pictures: Pictures) -> list[str]:
    """Name the palette's colour in the upper corners."""
    corners = torch.cat([pictures[:, :, :6, :6], pictures[:, :, :6, -6:]], dim=3).flatten(2).median(dim=2).values
    palette = torch.tensor(np.stack([flat(name, 1)[0, 0] for name in PALETTE])) / 127.5 - 1
    return [list(PALETTE)[i] for i in torch.cdist(corners, palette).argmin(dim=1).tolist()]


def main_hue(picture: Float[Tensor, "3 height width"]) -> str:
    """Return the most frequent colour of `HUES` among the vivid pixels, or `none`."""
    hsv = to_hsv(((picture.permute(1, 2, 0).numpy() + 1) / 2).reshape(-1, 3))
    vivid = hsv[(hsv[:, 1] > 0.35) & (hsv[:, 2] > 0.25), 0]
    if len(vivid) < 40:
        return "none"
    distances = np.stack([np.abs((vivid - hue + 0.5) % 1 - 0.5) for hue in HUES.values()])
    return list(HUES)[int(np.bincount(distances.argmin(axis=0), minlength=len(HUES)).argmax())]
