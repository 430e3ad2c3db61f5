"""Keypoints in a JSON file, drawn as the picture that an adapter reads.

Two forms are read: OpenPose's, which pose editors and estimators write, and faces:

    {"people": [{"pose_keypoints_2d": [x, y, confidence, ...]}], "canvas_width": 512,
     "canvas_height": 512}
    {"faces": [{"left_eye": [x, y], "right_eye": [x, y], "mouth": [x, y],
                "head": [x0, y0, x1, y1]}]}

Coordinates are fractions of the picture, or pixels of the canvas where one is given. No estimator
is called: none that is kept up comes with its weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mos_common.control.faces import Face, draw_faces
from mos_common.control.skeletons import JOINTS, Joint, draw_skeletons
from mos_common.errors import RequestError
from mos_common.text_files import NotTextError, read_text_file

MOST_BYTES, MOST_PEOPLE = 1 << 20, 64
# OpenPose's model of 25 joints has the middle of the hips as its ninth, and feet at the end.
OF_25 = (*range(8), *range(9, 19))
Pair = tuple[float, float]
Numbers = Annotated[list[float], Field(max_length=75)]


class _Person(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    pose_keypoints_2d: Numbers


class _Face(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    left_eye: Pair
    right_eye: Pair
    mouth: Pair
    head: tuple[float, float, float, float]


class _Keypoints(BaseModel):
    people: Annotated[list[_Person], Field(max_length=MOST_PEOPLE)] = Field(default_factory=list)
    faces: Annotated[list[_Face], Field(max_length=MOST_PEOPLE)] = Field(default_factory=list)
    canvas_width: Annotated[float, Field(gt=0)] = 1.0
    canvas_height: Annotated[float, Field(gt=0)] = 1.0


def draw_keypoints(file: Path, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Draw what a file of keypoints says, in the size of a drawing.

    Raises:
        RequestError: it is none, or has both people and faces, or neither.

    """
    try:
        told = json.loads(read_text_file(file, most=MOST_BYTES))
        told = told[0] if isinstance(told, list) and len(told) == 1 else told  # as some editors wrap it
        read = _Keypoints.model_validate(told)
    except NotTextError as error:
        raise RequestError(f"keypoints {file} {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise RequestError(f"keypoints {file}: {place[:80]}: {first['msg'][:200]}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"keypoints {file} is not JSON: {str(error).splitlines()[0][:200]}") from error
    if bool(read.people) == bool(read.faces):
        raise RequestError(f'keypoints {file}: expected "people" with pose_keypoints_2d, or "faces"')
    across, down = read.canvas_width, read.canvas_height
    if read.people:
        return draw_skeletons([_joints(person, across, down, file) for person in read.people], height, width)
    return draw_faces([_face(face, across, down) for face in read.faces], height, width)


def _joints(person: _Person, across: float, down: float, file: Path) -> list[Joint]:
    numbers = person.pose_keypoints_2d
    if len(numbers) not in (3 * JOINTS, 75):
        raise RequestError(f"keypoints {file}: {len(numbers)} numbers for a person: expected 54 (18 joints) or 75 (25)")
    chosen = OF_25 if len(numbers) == 75 else range(JOINTS)
    joints = [numbers[3 * i : 3 * i + 3] for i in chosen]
    return [(x / across, y / down) if confidence > 0 else None for x, y, confidence in joints]


def _face(face: _Face, across: float, down: float) -> Face:
    def point(at: Pair) -> Pair:
        return at[0] / across, at[1] / down

    left, top, right, bottom = face.head
    head = (left / across, top / down, right / across, bottom / down)
    return Face(point(face.left_eye), point(face.right_eye), point(face.mouth), head)
