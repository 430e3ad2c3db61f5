"""The table of `mos-bench tuning` by hand, and the masks of its pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mos_bench.pictures import compose_pictures
from mos_bench.teach import run_teach
from mos_bench.tuning import PRESET, VARIANTS, Outcome, mean_and_margin, run_tuning, table
from mos_client.tuning.settings import tuning_texts
from mos_common.errors import RequestError
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.kept import kept_subjects


def outcome(variant: str, identity: str, way: float, following: float) -> Outcome:
    return Outcome(variant, "objects", identity, way, following, 1.0)


def test_changes_are_paired_over_the_identities_that_both_have():
    """Differences -.1, -.2, -.3 give -.2 ± t(2) = 4.3027 times .1 / √3."""
    outcomes = [outcome(PRESET, name, way, 0.5) for name, way in (("a", 0.5), ("b", 0.7), ("c", 0.9), ("d", 9.0))]
    outcomes += [outcome("masked loss", name, way, 0.5) for name, way in (("a", 0.4), ("b", 0.5), ("c", 0.6))]
    line = next(line for line in table(outcomes) if line.startswith("| masked loss"))
    assert "| 0.500 | -0.200 ± 0.248 | 0.500 | +0.000 ± 0.000 |" in line


def test_one_identity_has_no_interval():
    assert mean_and_margin(np.array([0.3])) == (pytest.approx(0.3), float("inf"))


def test_variants_are_distinct_and_made_of_tuning_settings():
    assert VARIANTS[PRESET] == {}
    for changes in VARIANTS.values():
        tuning_texts([f"{name}={value}" for name, value in changes.items() if name != "steps"])
    made = [tuple(sorted(changes.items())) for changes in VARIANTS.values()]
    assert len(set(made)) == len(made)


def test_a_mask_is_the_subject_whatever_lies_behind_it(tmp_path):
    """Outside the masks two people composed under one name give the same picture."""
    world, (one, other) = World(), kept_subjects("own styles")[:2]
    for folder, views in (("one", one), ("other", other)):
        compose_pictures(tmp_path / folder, "same", views, world, masks=True)
    for number in ("01", "05", "12"):
        pictures = [np.asarray(Image.open(tmp_path / who / f"{number}.png")).astype(int) for who in ("one", "other")]
        masks = [np.asarray(Image.open(tmp_path / who / f"{number}.mask.png")) > 0 for who in ("one", "other")]
        assert all(0.1 < mask.mean() < 0.8 for mask in masks)
        apart = np.abs(pictures[0] - pictures[1]).max(axis=2)[~(masks[0] | masks[1])]
        assert apart.max() <= 16


def test_a_part_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(RequestError, match="expected a part from 0 to 1"):
        run_teach(tmp_path, each=1, base="tiny", steps=None, part=2, parts=2)
    with pytest.raises(RequestError, match="expected a part from 0 to 0"):
        run_tuning(tmp_path, each=1, base="tiny", only=[], part=1, parts=1)


def test_a_change_that_is_not_in_the_table_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"'rank one': unknown change; known: preset, .*rank 1"):
        run_tuning(tmp_path, each=1, base="tiny", only=["rank one"], part=0, parts=1)
