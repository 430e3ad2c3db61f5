"""Probes that name what a picture shows.

They learn from composed pictures only, never from drawings. The accuracy of a probe on real
pictures through the autoencoder, the ceiling, is printed beside every score.
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
    """A classifier by the nearest mean of real pictures' features."""

    names: list[str]
    centres: Features

    @classmethod
    def of(cls, features: Features, labels: Sequence[str]) -> Centroids:
        """Compute one centre for each label."""
        names = sorted(set(labels))
        rows = [[i for i, label in enumerate(labels) if label == name] for name in names]
        return cls(names, normalize(torch.stack([features[row].mean(dim=0) for row in rows]), dim=1))

    def name(self, features: Features) -> list[str]:
        """Return the name of each picture."""
        return [self.names[i] for i in (features @ self.centres.T).argmax(dim=1).tolist()]


@dataclass(frozen=True)
class LinearProbe:
    """A classifier by ridge regression on one-hot labels."""

    names: list[str]
    mean: Float[Tensor, " inputs"]
    weights: Float[Tensor, "inputs names"]

    @classmethod
    def of(cls, inputs: Float[Tensor, "n inputs"], labels: Sequence[str], ridge: float = 1e-3) -> LinearProbe:
        """Fit in closed form in float64; `ridge` is relative to the mean square of the inputs."""
        names = sorted(set(labels))
        wanted = one_hot(torch.tensor([names.index(label) for label in labels])).double()
        wanted = wanted / wanted.mean(dim=0)  # a rare name counts as much as a frequent one
        mean = inputs.double().mean(dim=0)
        rows = inputs.double() - mean
        gram = rows.T @ rows / len(rows)
        damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        return cls(names, mean, torch.linalg.solve(damped, rows.T @ (wanted - wanted.mean(dim=0)) / len(rows)))

    def name(self, inputs: Float[Tensor, "n inputs"]) -> list[str]:
        """Return the name of each picture."""
        scores = (inputs.double() - self.mean) @ self.weights
        return [self.names[i] for i in scores.argmax(dim=1).tolist()]


def thumbnail(pictures: Pictures, side: int = 16) -> Float[Tensor, "n inputs"]:
    """Return the pictures reduced to `side` x `side` pixels, flattened."""
    return adaptive_avg_pool2d(pictures, side).flatten(1)


def colour_counts(pictures: Pictures, levels: int = 6) -> Float[Tensor, "n inputs"]:
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
    colours = torch.tensor(np.stack([flat(name, 1)[0, 0] for name in PALETTE])) / 127.5 - 1
    return [list(PALETTE)[i] for i in torch.cdist(corners, colours).argmin(dim=1).tolist()]


def main_hue(picture: Float[Tensor, "3 height width"]) -> str:
    """Return the most frequent colour of `HUES` among the vivid pixels, or `none`."""
    hsv = to_hsv(((picture.permute(1, 2, 0).numpy() + 1) / 2).reshape(-1, 3))
    vivid = hsv[(hsv[:, 1] > 0.35) & (hsv[:, 2] > 0.25), 0]
    if len(vivid) < 40:
        return "none"
    distances = np.stack([np.abs((vivid - hue + 0.5) % 1 - 0.5) for hue in HUES.values()])
    return list(HUES)[int(np.bincount(distances.argmin(axis=0), minlength=len(HUES)).argmax())]


def frechet_distance(one: Features, other: Features, kept: int = 64) -> float:
    """Return 1000 times the Fréchet distance in the `kept` main directions of `other`.

    The distance is |m₁-m₂|² + tr(C₁ + C₂ - 2 (C₁C₂)^½). In all 1280 directions, that of a few
    hundred pictures would depend mostly on their number.
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
"""The region of eyes and mouth when one person is composed into 64 x 64 pixels."""


def face_boxes(concepts: Art, style: str) -> tuple[Box, Box]:
    """Return the boxes (top, left, bottom, right) of eyes and mouth.

    They are where views of one person differ, split at the widest gap between rows.
    """
    views = [concepts.pictures[concepts.where(style=style, id=i)].astype(np.float32) for i in range(4)]
    moving = np.max([view.std(axis=0).max(axis=-1) for view in views], axis=0) > 12
    rows = np.flatnonzero(moving.any(axis=1))
    cut = int(np.diff(rows).argmax()) + 1
    return _box(moving, rows[:cut]), _box(moving, rows[cut:])


def _box(moving: np.ndarray, rows: np.ndarray) -> Box:
    columns = np.flatnonzero(moving[rows].any(axis=0))
    return int(rows[0]) - 1, int(columns[0]) - 2, int(rows[-1]) + 2, int(columns[-1]) + 3


def without(sprite: Sprite, box: Box, skin: str) -> Sprite:
    """Return the face with a box of it painted in the colour of the skin."""
    painted = sprite.copy()
    top, left, bottom, right = box
    painted[top:bottom, left:right, :3] = rgb(skin)
    return painted


class FaceDetector(nn.Module):
    """A detector of eyes and of a mouth in a picture of one person."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(48 * 6 * 5, 2)),
        )

    def forward(self, pictures: Pictures) -> Float[Tensor, "n 2"]:
        """Return the log odds of eyes and of a mouth."""
        top, left, bottom, right = FACE
        log_odds: Tensor = self.layers(pictures[:, :, top:bottom, left:right])
        return log_odds

    def fit(self, pictures: Pictures, has: Float[Tensor, "n 2"], steps: int = 700, batch: int = 48) -> FaceDetector:
        """Learn from pictures `SIDE` pixels wide; `has` is 1 or 0 for eyes and for a mouth."""
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
        """Return `yes` for each picture that has eyes and a mouth, else `no`."""
        return ["yes" if has_both else "no" for has_both in (self(pictures) > 0).all(dim=1).tolist()]
