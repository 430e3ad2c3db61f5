"""Keypoints in JSON: each joint is where the file says, in OpenPose's colours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mos_client.drawing.keypoints import draw_keypoints
from mos_common.control.skeletons import COLOURS
from mos_common.errors import RequestError

FACE = {"left_eye": [0.25, 0.5], "right_eye": [0.5, 0.5], "mouth": [0.375, 0.75], "head": [0.125, 0.25, 0.625, 0.875]}


def written(folder: Path, told: object) -> Path:
    (folder / "k.json").write_text(told if isinstance(told, str) else json.dumps(told), encoding="utf-8")
    return folder / "k.json"


def person(at: dict[int, tuple[float, float]], joints: int = 18) -> dict[str, list[float]]:
    return {"pose_keypoints_2d": [n for i in range(joints) for n in ((*at[i], 0.9) if i in at else (0.0, 0.0, 0.0))]}


def test_the_colours_are_those_of_openpose():
    """The list in OpenPose's and ControlNet's annotators."""
    assert COLOURS == (
        (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
        (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
        (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
    )  # fmt: skip


def test_joints_are_drawn_where_they_are_and_a_limb_between_two(tmp_path):
    """The neck is joint 1, the right shoulder joint 2; between them is the first limb, in red."""
    told = {"people": [person({1: (256, 128), 2: (128, 128)})], "canvas_width": 512, "canvas_height": 256}
    drawn = draw_keypoints(written(tmp_path, told), 128, 256)
    assert drawn.shape == (128, 256, 3)
    assert tuple(drawn[64, 128]) == COLOURS[1]
    assert tuple(drawn[64, 64]) == COLOURS[2]
    assert tuple(drawn[64, 96]) == (153, 0, 0)
    assert not drawn[:32].any()


def test_of_25_joints_the_eighteen_are_drawn(tmp_path):
    """The ninth of 25 is the middle of the hips, which the eighteen have not."""
    middle = draw_keypoints(written(tmp_path, {"people": [person({8: (0.5, 0.5)}, 25)]}), 64, 64)
    right_hip = draw_keypoints(written(tmp_path, {"people": [person({9: (0.5, 0.5)}, 25)]}), 64, 64)
    assert not middle.any()
    assert tuple(right_hip[32, 32]) == COLOURS[8]


def test_a_face_has_its_points_and_its_box(tmp_path):
    drawn = draw_keypoints(written(tmp_path, {"faces": [FACE]}), 64, 64)
    for (x, y), colour in (((16, 32), (255, 0, 0)), ((32, 32), (0, 255, 0)), ((24, 48), (0, 0, 255))):
        assert tuple(drawn[y, x]) == colour
    box = np.argwhere((drawn == (255, 0, 255)).all(axis=2))
    assert [*box.min(axis=0), *box.max(axis=0)] == [16, 8, 55, 39]


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("{", "is not JSON"),
        ({}, 'expected "people" with pose_keypoints_2d, or "faces"'),
        ({"people": [person({})], "faces": [FACE]}, 'or "faces"'),
        ({"people": [{"pose_keypoints_2d": [1, 2, 3]}]}, "3 numbers for a person: expected 54"),
        ({"faces": [{"mouth": [0, 0]}]}, "faces.0.left_eye: Field required"),
        ({"faces": [{**FACE, "head": [1, 0, 0, 1]}]}, "head .*expected left, top, right, bottom"),
        ({"people": [person({})], "canvas_width": 0}, "canvas_width"),
    ],
)
def test_what_is_no_keypoints_is_refused_by_what_is_wrong(told, said, tmp_path):
    with pytest.raises(RequestError, match=said):
        draw_keypoints(written(tmp_path, told), 64, 64)
