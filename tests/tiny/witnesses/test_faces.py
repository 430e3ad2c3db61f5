"""The boxes of eyes and mouth, and the detector that knows the faces of the demonstration."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from mos_common.base_model import Base
from mos_tiny.recipe.art import load_art
from mos_tiny.recipe.compose import Subject
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.trials import PLACES, composed
from mos_tiny.recipe.vae import reconstructed
from mos_tiny.recipe.witnesses.faces import STYLE, face_boxes, kept_detector, without
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


@pytest.mark.parametrize("who", [0, 3], ids=["tom", "sunny"])
def test_the_packaged_detector_finds_whole_faces_of_the_demonstration_and_no_others(who, world, tiny: Base):
    """It has seen neither of the two; their pictures go through the autoencoder as drawings do."""
    art, random = load_art("concepts"), Random(1)
    eyes, mouth = face_boxes(art, STYLE)
    rows = art.where(style=STYLE, id=who)
    found = {}
    for name, painted in {"whole": (), "no eyes": (eyes,), "no mouth": (mouth,), "neither": (eyes, mouth)}.items():
        pictures = []
        for i in rows:
            sprite, label = art.pictures[i], art.labels[i]
            for box in painted:
                sprite = without(sprite, box, label["skin"])
            pictures.append(composed(random.choice(PLACES), [Subject(sprite, "", True, label)], random, world))
        seen = kept_detector().both(reconstructed(tiny.vae, as_tensor(np.stack(pictures))))
        found[name] = seen.count("yes") / len(rows)
    assert found["whole"] >= 0.9
    assert max(found[name] for name in ("no eyes", "no mouth", "neither")) <= 0.1, found
