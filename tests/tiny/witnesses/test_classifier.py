"""The three rules on labelled features, against other roads to the same classifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mos_tiny.recipe.witnesses.classifier import nearest_mean, nearest_whitened_mean, ridge_regression

LABELS = [("a", "b", "c")[i % 3] for i in range(90)]


def rows_of(spread: float, *, features: int = 4) -> torch.Tensor:
    """Rows around one corner per name, of length 1 as image features are."""
    noise = torch.randn(90, features, generator=torch.Generator().manual_seed(0))
    rows = torch.eye(features)[[i % 3 for i in range(90)]] + spread * noise
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("rule", [nearest_mean, ridge_regression, nearest_whitened_mean])
def test_every_rule_separates_names_that_are_far_apart(rule):
    rows = rows_of(0.1)
    assert rule(rows, LABELS).classify(rows) == LABELS


def test_the_nearest_mean_has_the_largest_cosine():
    rows = rows_of(0.6)
    means = {
        name: np.mean([r for r, n in zip(rows.numpy(), LABELS, strict=True) if n == name], axis=0) for name in "abc"
    }
    cosines = [{n: row @ mean / np.linalg.norm(mean) for n, mean in means.items()} for row in rows.numpy()]
    assert nearest_mean(rows, LABELS).classify(rows) == [max(of_row, key=of_row.get) for of_row in cosines]


def test_regression_without_ridge_is_least_squares():
    """numpy's lstsq on centred rows, with one-hot labels over their frequency."""
    rows = rows_of(0.6).double()
    wanted = np.array([[3.0 * (label == name) for name in "abc"] for label in LABELS])
    found, *_ = np.linalg.lstsq((rows - rows.mean(dim=0)).numpy(), wanted - wanted.mean(axis=0), rcond=None)
    np.testing.assert_allclose(ridge_regression(rows, LABELS, ridge=0).weights.numpy(), found, atol=1e-9)


def test_whitening_ignores_what_varies_within_a_name():
    """Two names differ on one axis, with much noise on another: the plain mean is often wrong."""
    generator = torch.Generator().manual_seed(0)
    labels = ["a", "b"] * 200
    rows = torch.randn(400, 2, generator=generator) * torch.tensor([0.1, 3.0])
    rows[:, 0] += torch.tensor([-0.5, 0.5]).repeat(200)
    names = nearest_whitened_mean(rows[:200], labels[:200], ridge=1e-6).classify(rows[200:])
    assert np.mean([name == label for name, label in zip(names, labels[200:], strict=True)]) >= 0.99


def test_the_nearest_whitened_mean_is_the_largest_cosine_of_whitened_rows():
    """Whitened by the inverse of numpy's Cholesky factor, one row and one mean at a time."""
    rows = rows_of(0.6).double().numpy()
    of = {name: rows[[label == name for label in LABELS]] for name in "abc"}
    within = np.concatenate([part - part.mean(axis=0) for part in of.values()])
    covariance = within.T @ within / len(within)
    whiten = np.linalg.inv(np.linalg.cholesky(covariance + 0.5 * covariance.trace() / 4 * np.eye(4)))
    means = {name: whiten @ (part.mean(axis=0) - rows.mean(axis=0)) for name, part in of.items()}

    def nearest(row):
        return max(
            means, key=lambda name: whiten @ (row - rows.mean(axis=0)) @ means[name] / np.linalg.norm(means[name])
        )

    found = nearest_whitened_mean(torch.tensor(rows), LABELS, ridge=0.5).classify(torch.tensor(rows))
    assert found == [nearest(row) for row in rows]
