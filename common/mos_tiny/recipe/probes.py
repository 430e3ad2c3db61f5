"""What looks at a drawing and says what it shows. Everything here learns from composed pictures only, never from drawings.

How well a probe sees is measured on real pictures through the autoencoder and printed beside every score: the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize, one_hot

from mos_tiny.recipe.art import SIDE, Art
from mos_tiny.recipe.scenes import flat
from mos_tiny.recipe.sprites import Sprite, to_hsv
from mos_tiny.recipe.world import HUES, PALETTE, rgb

Pictures = Float[Tensor, "n 3 height width"]
Features = Float[Tensor, "n features"]


@dataclass(frozen=True)
class Centroids:
    """Names by the nearest mean of real pictures' features."""

    names: list[str]
    centres: Features

    @classmethod
    def of(cls, features: Features, labels: Sequence[str]) -> Centroids:
        """One centre a label."""
        names = sorted(set(labels))
        rows = [[i for i, label in enumerate(labels) if label == name] for name in names]
        return cls(names, normalize(torch.stack([features[row].mean(dim=0) for row in rows]), dim=1))

    def name(self, features: Features) -> list[str]:
        """The name of each picture."""
        return [self.names[i] for i in (features @ self.centres.T).argmax(dim=1).tolist()]


@dataclass(frozen=True)
class LinearProbe:
    """Names by ridge regression on one-hot labels."""

    names: list[str]
    mean: Float[Tensor, " inputs"]
    weights: Float[Tensor, "inputs names"]

    @classmethod
    def of(cls, inputs: Float[Tensor, "n inputs"], labels: Sequence[str], ridge: float = 1e-3) -> LinearProbe:
        """Fitted in closed form, in float64; `ridge` is relative to the mean square of the inputs."""
        names = sorted(set(labels))
        wanted = one_hot(torch.tensor([names.index(label) for label in labels])).double()
        wanted = wanted / wanted.mean(dim=0)  # a rare name counts as much as a frequent one
        mean = inputs.double().mean(dim=0)
        rows = inputs.double() - mean
        gram = rows.T @ rows / len(rows)
        damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        return cls(names, mean, torch.linalg.solve(damped, rows.T @ (wanted - wanted.mean(dim=0)) / len(rows)))

    def name(self, inputs: Float[Tensor, "n inputs"]) -> list[str]:
        """The name of each picture."""
        scores = (inputs.double() - self.mean) @ self.weights
        return [self.names[i] for i in scores.argmax(dim=1).tolist()]


def thumbnail(pictures: Pictures, side: int = 16) -> Float[Tensor, "n inputs"]:
    """Colours and where they are."""
    return adaptive_avg_pool2d(pictures, side).flatten(1)


def colour_counts(pictures: Pictures, levels: int = 6) -> Float[Tensor, "n inputs"]:
    """How much there is of each colour, in the upper part of the picture and in the whole; nearly white is not pure white."""
    counts = []
    for part in (pictures[:, :, : pictures.shape[2] * 5 // 8], pictures):
        level = ((part.clamp(-1, 1) + 1) / 2 * (levels - 1)).round().long()
        index = (level[:, 0] * levels + level[:, 1]) * levels + level[:, 2]
        each = index.flatten(1)
        count = torch.zeros(len(each), levels**3).scatter_add_(1, each, torch.ones(each.shape))
        counts.append((count / each.shape[1]).sqrt())
    return torch.cat(counts, dim=1)


def flat_background(pictures: Pictures) -> list[str]:
    """The palette's name of what lies in the upper corners."""
    corners = torch.cat([pictures[:, :, :6, :6], pictures[:, :, :6, -6:]], dim=3).flatten(2).median(dim=2).values
    colours = torch.tensor(np.stack([flat(name, 1)[0, 0] for name in PALETTE])) / 127.5 - 1
    return [list(PALETTE)[i] for i in torch.cdist(corners, colours).argmin(dim=1).tolist()]


def main_hue(picture: Float[Tensor, "3 height width"]) -> str:
    """The colour of `HUES` that the vivid pixels of a picture have most, or `none`."""
    hsv = to_hsv(((picture.permute(1, 2, 0).numpy() + 1) / 2).reshape(-1, 3))
    vivid = hsv[(hsv[:, 1] > 0.35) & (hsv[:, 2] > 0.25), 0]
    if len(vivid) < 40:
        return "none"
    distances = np.stack([np.abs((vivid - hue + 0.5) % 1 - 0.5) for hue in HUES.values()])
    return list(HUES)[int(np.bincount(distances.argmin(axis=0), minlength=len(HUES)).argmax())]


def frechet_distance(one: Features, other: Features, kept: int = 64) -> float:
    """|m₁-m₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½) in the `kept` main directions of `other`, times 1000.

    In all 1280 directions a few hundred pictures would measure their own number.
    """
    centre = other.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(other.double() - centre, full_matrices=False)
    a, b = ((x.double() - centre) @ directions[:kept].T for x in (one, other))
    cov_a, cov_b = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return 1000 * float(((a.mean(dim=0) - b.mean(dim=0)) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


Box = tuple[int, int, int, int]
FACE: Box = (12, 12, 60, 52)
"""Where eyes and mouth are when one person is composed into 64 x 64 pixels."""


def face_boxes(concepts: Art, style: str) -> tuple[Box, Box]:
    """(eyes, mouth) as top, left, bottom, right: where views of one person differ, parted at the widest gap."""
    views = [concepts.pictures[concepts.where(style=style, id=i)].astype(np.float32) for i in range(4)]
    moving = np.max([view.std(axis=0).max(axis=-1) for view in views], axis=0) > 12
    rows = np.flatnonzero(moving.any(axis=1))
    cut = int(np.diff(rows).argmax()) + 1
    return _box(moving, rows[:cut]), _box(moving, rows[cut:])


def _box(moving: np.ndarray, rows: np.ndarray) -> Box:
    columns = np.flatnonzero(moving[rows].any(axis=0))
    return int(rows[0]) - 1, int(columns[0]) - 2, int(rows[-1]) + 2, int(columns[-1]) + 3


def without(sprite: Sprite, box: Box, skin: str) -> Sprite:
    """A face with a part of it gone: skin where the part was."""
    gone = sprite.copy()
    top, left, bottom, right = box
    gone[top:bottom, left:right, :3] = rgb(skin)
    return gone


class FaceDetector(nn.Module):
    """Says of a picture of one person whether it has eyes and whether it has a mouth."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(48 * 6 * 5, 2)),
        )

    def forward(self, pictures: Pictures) -> Float[Tensor, "n 2"]:
        """Log odds of eyes and of a mouth."""
        top, left, bottom, right = FACE
        found: Tensor = self.layers(pictures[:, :, top:bottom, left:right])
        return found

    def fit(self, pictures: Pictures, has: Float[Tensor, "n 2"], steps: int = 700, batch: int = 48) -> FaceDetector:
        """Learn from pictures of `SIDE` that have eyes and a mouth or not."""
        assert pictures.shape[-1] == SIDE
        generator = torch.Generator().manual_seed(0)
        adam = torch.optim.Adam(self.parameters(), lr=2e-3)
        for step in range(steps):
            adam.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            which = torch.randint(len(pictures), (batch,), generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(self(pictures[which]), has[which])
            adam.zero_grad()
            torch.autograd.backward(loss)
            adam.step()
        return self.eval()

    @torch.no_grad()
    def both(self, pictures: Pictures) -> list[str]:
        """`yes` for each picture that has eyes and a mouth, else `no`."""
        return ["yes" if found else "no" for found in (self(pictures) > 0).all(dim=1).tolist()]
