"""Keypoints of faces, and the picture that an adapter reads of them.

A face is drawn as the box of its head, a point for each eye and one for the mouth, each in a colour
of its own on black, as OpenPose's skeletons are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from mos_common.errors import RequestError

Point = tuple[float, float]
HEAD, LEFT_EYE, RIGHT_EYE, MOUTH = (255, 0, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)
POINT, LINE = 1 / 32, 1 / 64  # radius of a point and width of a line, as shares of the picture's height


@dataclass(frozen=True)
class Face:
    """Where a face has its parts, in fractions of the picture's width and height.

    Left and right are those of the picture. `head` is (left, top, right, bottom) and may reach
    beyond the picture.
    """

    left_eye: Point
    right_eye: Point
    mouth: Point
    head: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        left, top, right, bottom = self.head
        if not (left < right and top < bottom):
            raise RequestError(f"head {self.head}: expected left, top, right, bottom with left < right, top < bottom")


def draw_faces(faces: Sequence[Face], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the keypoints of faces on black."""
    image = Image.new("RGB", (width, height))
    pen, radius = ImageDraw.Draw(image), POINT * height
    for face in faces:
        left, top, right, bottom = face.head
        corners = (left * width, top * height, right * width - 1, bottom * height - 1)
        pen.rectangle(corners, outline=HEAD, width=max(1, round(LINE * height)))
        for (x, y), colour in ((face.left_eye, LEFT_EYE), (face.right_eye, RIGHT_EYE), (face.mouth, MOUTH)):
            centre_x, centre_y = x * width - 0.5, y * height - 0.5
            pen.ellipse((centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius), fill=colour)
    return np.asarray(image)
