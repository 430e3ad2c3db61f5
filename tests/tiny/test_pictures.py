"""Training pictures for the autoencoder."""

from __future__ import annotations

from mos_tiny.recipe.compose import World
from mos_tiny.recipe.pictures import training_batches


def test_pictures_to_reconstruct_are_in_range_and_various():
    batch = next(training_batches(World(), 24, seed=0))
    assert batch.shape == (24, 3, 64, 64) and batch.min() >= -1 and batch.max() <= 1
    assert len({picture.numpy().tobytes() for picture in batch}) == 24
