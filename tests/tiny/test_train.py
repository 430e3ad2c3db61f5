"""The learning rate of the training."""

from __future__ import annotations

import pytest

from mos_tiny.recipe.train import Training, learning_rate


def test_the_learning_rate_warms_up_and_decays_to_three_hundredths():
    training = Training(samples=1000, learning_rate=1.0)
    assert learning_rate(training, 0, 0) == pytest.approx(1 / 60)
    assert learning_rate(training, 100, 0) == pytest.approx(1)
    assert learning_rate(training, 100, 500) == pytest.approx(0.5 * 0.97 + 0.03)
    assert learning_rate(training, 100, 1000) == learning_rate(training, 100, 1500) == pytest.approx(0.03)
