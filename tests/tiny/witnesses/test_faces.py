"""The boxes of eyes and mouth."""

from __future__ import annotations

import numpy as np
import pytest

from mos_tiny.recipe.art import load_art
from mos_tiny.recipe.witnesses.faces import face_boxes, without
from mos_tiny.recipe.world import STYLES


@pytest.mark.parametrize("style", STYLES)
def test_eyes_are_above_the_mouth_and_can_be_painted_over(style, world):
    (eyes, mouth) = face_boxes(load_art("concepts"), style)
    assert 15 < eyes[0] < eyes[2] <= mouth[0] + 3 and mouth[2] < 56
    i = world.characters.where(style=style)[0]
    sprite, skin = world.characters.pictures[i], world.characters.labels[i]["skin"]
    gone = without(sprite, eyes, skin)
    assert len(np.unique(gone[eyes[0] : eyes[2], eyes[1] : eyes[3], :3].reshape(-1, 3), axis=0)) == 1
    assert (gone[: eyes[0]] == sprite[: eyes[0]]).all() and (gone[eyes[2] :] == sprite[eyes[2] :]).all()
