"""The learning curve."""

from __future__ import annotations

import json

from PIL import Image

from mos_tiny.recipe.curve import LearningCurve


def test_a_learning_curve_grows_by_a_point_and_is_drawn(tmp_path):
    for i in range(3):
        LearningCurve(tmp_path).add(seen=100.0 * i, seconds=i, loss=1 / (i + 1))
    assert [point["seen"] for point in json.loads((tmp_path / "curve.json").read_text())] == [0, 100, 200]
    with Image.open(tmp_path / "curve.png") as drawn:
        assert drawn.size == (640, 360)
