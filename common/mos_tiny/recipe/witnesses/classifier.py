"""A linear classifier of features, and the three rules that fit one to labelled features.

    name(f) = argmax over names n of (f - m)·w_n

    nearest mean            m = 0, w_n = c_n/|c_n|, with c_n the mean of the name's features:
                            the largest cosine
    ridge regression        min over w of mean |(f - m)·w_n - y_n|² + λ tr(C)/d |w|², with y the
                            one-hot labels over their frequency, C the covariance of f
    nearest whitened mean   w_n = L⁻ᵀ p_n, with z(f) = L⁻¹ (f - m), Q + λ tr(Q)/d I = L Lᵀ,
                            Q the covariance within names, p_n the mean of z over the name, of
                            length 1: the largest cosine after the variation within names is
                            scaled away

Backgrounds, sizes and sides vary within a name, so whitening gives them little weight. For
identities on real pictures, the nearest mean is right in 0.961 of cases and the nearest whitened
mean in 0.977. For backgrounds, ridge regression on thumbnails is right in 0.78 of cases and the
nearest whitened mean in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, one_hot

Features = Float[Tensor, "n features"]


@dataclass(frozen=True)
class Classifier:
    """The names, m and w above, in float64."""

    names: list[str]
    mean: Float[Tensor, " features"]
    weights: Float[Tensor, "features names"]

    def classify(self, features: Features) -> list[str]:
        """Return the name of each row."""
        scores = (features.double() - self.mean) @ self.weights
        return [self.names[i] for i in scores.argmax(dim=1).tolist()]


Rule = Callable[[Features, Sequence[str]], Classifier]


def nearest_mean(features: Features, labels: Sequence[str]) -> Classifier:
    """Fit by the nearest mean of features of length 1."""
    names, which = _indexed(labels)
    rows = features.double()
    return Classifier(names, torch.zeros_like(rows[0]), normalize(_means(rows, which, len(names)), dim=1).T)


def ridge_regression(features: Features, labels: Sequence[str], *, ridge: float = 1e-3) -> Classifier:
    """Fit by regression on one-hot labels; `ridge` is λ."""
    names, which = _indexed(labels)
    wanted = one_hot(which).double()
    wanted = wanted / wanted.mean(dim=0)  # a rare name counts as much as a frequent one
    mean = features.double().mean(dim=0)
    rows = features.double() - mean
    gram = rows.T @ rows / len(rows)
    weights = torch.linalg.solve(_damped(gram, ridge), rows.T @ (wanted - wanted.mean(dim=0)) / len(rows))
    return Classifier(names, mean, weights)


def nearest_whitened_mean(features: Features, labels: Sequence[str], *, ridge: float = 1.0) -> Classifier:
    """Fit by the nearest mean of whitened features; `ridge` is λ."""
    names, which = _indexed(labels)
    rows = features.double()
    means, mean = _means(rows, which, len(names)), rows.mean(dim=0)
    within = rows - means[which]
    L = torch.linalg.cholesky(_damped(within.T @ within / len(within), ridge))
    prototypes = normalize(torch.linalg.solve_triangular(L, (means - mean).T, upper=False), dim=0)
    return Classifier(names, mean, torch.linalg.solve_triangular(L.T, prototypes, upper=True))


def _indexed(labels: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the sorted names, and the index of each label's name."""
    names = sorted(set(labels))
    index = {name: i for i, name in enumerate(names)}
    return names, torch.tensor([index[label] for label in labels])


def _means(rows: Features, which: Tensor, names: int) -> Float[Tensor, "names features"]:
    return torch.stack([rows[which == i].mean(dim=0) for i in range(names)])


def _damped(matrix: Float[Tensor, "d d"], ridge: float) -> Float[Tensor, "d d"]:
    """Return the matrix with `ridge` times its mean diagonal added to the diagonal."""
    mean = matrix.diagonal().mean().clamp(min=1e-9)
    return matrix + ridge * mean * torch.eye(len(matrix), dtype=matrix.dtype)
