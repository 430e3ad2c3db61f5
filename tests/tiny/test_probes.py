"""Probes and distances against cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mos_tiny.recipe.art import load_art
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.probes import (
    Centroids,
    LinearProbe,
    face_boxes,
    flat_background,
    frechet_distance,
    main_hue,
    without,
)
from mos_tiny.recipe.scenes import flat
from mos_tiny.recipe.sprites import to_rgb
from mos_tiny.recipe.world import HUES, PALETTE, STYLES


def test_a_linear_probe_and_centroids_name_what_is_apart():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    labels = [("a", "b", "c")[i % 3] for i in range(90)]
    rows = torch.stack([centres[i % 3] for i in range(90)]) + 0.1 * torch.randn(90, 3, generator=generator)
    assert LinearProbe.of(rows, labels).name(rows) == labels
    assert Centroids.of(rows, labels).name(centres) == ["a", "b", "c"]


def test_the_frechet_distance_of_gaussians_is_what_the_formula_says():
    """A shift by d gives 1000·|d|², a scale by s in k directions 1000·k·(s-1)², up to sampling."""
    rows = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(rows, rows, kept=4) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows + torch.tensor([0.3, 0, 0, 0.4]), rows, kept=4) == pytest.approx(250, rel=1e-3)
    assert frechet_distance(2 * (rows - rows.mean(dim=0)), rows, kept=4) == pytest.approx(4000, rel=0.1)


def test_flat_backgrounds_and_hues_are_named():
    assert flat_background(as_tensor(np.stack([flat(c, 64).astype(np.uint8) for c in PALETTE]))) == list(PALETTE)
    for name, hue in HUES.items():
        picture = np.full((64, 64, 3), 245, np.uint8)
        picture[20:40, 20:40] = to_rgb(np.array([hue, 0.9, 0.9], np.float32)) * 255
        assert main_hue(as_tensor(picture[None])[0]) == name
    assert main_hue(torch.ones(3, 64, 64)) == "none"


@pytest.mark.parametrize("style", STYLES)
def test_eyes_are_above_the_mouth_and_can_be_taken_away(style, world):
    (eyes, mouth) = face_boxes(load_art("concepts"), style)
    assert 15 < eyes[0] < eyes[2] <= mouth[0] + 3 and mouth[2] < 56
    i = world.characters.where(style=style)[0]
    sprite, skin = world.characters.pictures[i], world.characters.labels[i]["skin"]
    gone = without(sprite, eyes, skin)
    assert len(np.unique(gone[eyes[0] : eyes[2], eyes[1] : eyes[3], :3].reshape(-1, 3), axis=0)) == 1
    assert (gone[: eyes[0]] == sprite[: eyes[0]]).all() and (gone[eyes[2] :] == sprite[eyes[2] :]).all()
