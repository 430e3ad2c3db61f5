"""What the adapters of `tiny` learn from: keypoints are where the art has them, lines at edges."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from mos_tiny.recipe.art import load_art
from mos_tiny.recipe.compose import Placement, World
from mos_tiny.recipe.control.conditions import face_at, keypoints_of_styles, people, sketch_of
from mos_tiny.recipe.witnesses.faces import face_boxes
from mos_tiny.recipe.world import STYLES


@pytest.mark.parametrize("style", list(STYLES))
def test_keypoints_are_where_views_of_one_person_differ(style):
    """The other road: eyes and mouth move between the views of the concepts."""
    own = keypoints_of_styles()[style]
    (top, left, bottom, right), of_mouth = face_boxes(load_art("concepts"), style)
    for x, y in (own["left_eye"], own["right_eye"]):
        assert left <= x <= right and top <= y <= bottom
    x, y = own["mouth"]
    assert of_mouth[1] <= x <= of_mouth[3] and of_mouth[0] <= y <= of_mouth[2]
    assert own["left_eye"][0] < own["mouth"][0] < own["right_eye"][0]


def test_a_mirrored_smaller_face_has_its_parts_mirrored_and_nearer():
    """Half as large at (10, 20) of a picture 128 wide: x becomes 10 + (64 - x)/2."""
    own = keypoints_of_styles()["micah"]
    face = face_at("micah", Placement(left=10, top=20, side=32, mirrored=True), 128)
    assert face.left_eye == pytest.approx(
        ((10 + (64 - own["right_eye"][0]) / 2) / 128, (20 + own["right_eye"][1] / 2) / 64)
    )
    assert face.right_eye[0] == pytest.approx((10 + (64 - own["left_eye"][0]) / 2) / 128)
    assert face.head[0] == pytest.approx((10 + (64 - own["head"][2]) / 2) / 128)


def test_a_wide_picture_has_two_people_with_their_keypoints():
    pictures, captions, conditions = people(World(), 3, 128, seed=1)
    assert pictures.shape == conditions.shape == (3, 64, 128, 3)
    for condition, caption in zip(conditions, captions, strict=True):
        assert " on the left and " in caption
        for half in np.split(condition, 2, axis=1):
            for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
                assert (half == colour).all(axis=2).any()


def test_a_sketch_has_lines_at_the_edges_and_nowhere_else():
    pytest.importorskip("cv2")
    picture = np.full((64, 64, 3), 255, np.uint8)
    picture[16:48, 16:48] = 0
    for seed in range(6):
        sketch = sketch_of(picture, Random(seed))
        assert sketch.shape == (64, 64, 3) and sketch[30:34, 14:18].max() > 100
        assert not sketch[20:44, 20:44].any() and not sketch[:12].any()
