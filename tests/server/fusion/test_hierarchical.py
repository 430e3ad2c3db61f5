"""Regional servers record their own concepts; whoever has their moments fuses all of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mos_common.layers import Group
from mos_server.fusion.fuse import fuse
from mos_server.fusion.layerwise import changed_layers
from mos_server.fusion.moments import Moments, read_moments
from mos_server.fusion.normal_equation import NormalEquations
from reference.small_fusion import SETTINGS, assert_bit_equal

# Keys and values recorded on each concept's own text encoder: no recording knows other concepts.
OWN = replace(SETTINGS, text_inputs="own")


@pytest.fixture
def regions(tiny, three, tmp_path: Path) -> tuple[Path, Path]:
    """The moments of two regional servers: one with two concepts, one with the third."""
    folders = tmp_path / "north", tmp_path / "south"
    for folder, concepts in zip(folders, (three[:2], three[2:]), strict=True):
        fuse(tiny, concepts, OWN, moments_dir=folder)
    return folders


def test_who_has_the_moments_of_all_regions_records_nothing_and_fuses_as_one_server_would(
    tiny, three, tmp_path, regions, recordings
):
    for folder in regions:
        shutil.copytree(folder, tmp_path / "all", dirs_exist_ok=True)
    recordings.clear()
    together = fuse(tiny, three, OWN, moments_dir=tmp_path / "all")
    assert not recordings
    at_once = fuse(tiny, three, OWN)
    assert_bit_equal(together, at_once)
    assert together.manifest == at_once.manifest


@pytest.mark.parametrize("text_inputs", ["fused", "own"])
def test_what_depends_on_the_others_is_recorded_again_and_nothing_else(tiny, three, tmp_path, recordings, text_inputs):
    """With the default, keys and values read the text encoder that is fused of all."""
    settings = replace(SETTINGS, text_inputs=text_inputs)
    for concepts in (three[:2], three[2:]):
        fuse(tiny, concepts, settings, moments_dir=tmp_path)
    recordings.clear()
    fuse(tiny, three, settings, moments_dir=tmp_path)
    assert set(recordings) == ({Group.CROSS} if text_inputs == "fused" else set())


def equations_of(base, concepts, all_concepts, moments: dict, ordinary: Moments) -> NormalEquations:
    equations = NormalEquations(
        changed_layers(base, all_concepts, Group.TEXT),
        ordinary,
        preserve=0.5,
        ridge=0.01,
        ridge_kind="trace",
        towards=0.0,
        cap=4.0,
    )
    for named in concepts:
        equations.add(named.concept, moments[named.token])
    return equations


def test_the_sums_of_regions_add_up_to_the_sums_of_all_and_solve_to_the_same_change(tiny, three, regions):
    """S and the right-hand sides: two sums of sums, so equal but for the rounding of float64.

    The other road to the change is dense: it solves (S + λ) from the added sums, for every layer.
    """
    from mos_common.concept_file import content_digest

    layers = changed_layers(tiny, three, Group.TEXT)
    wanted = {layer.reads for layer in layers}
    kept = [read_moments(path) for folder in regions for path in sorted(folder.iterdir())]
    names = [path.name for folder in regions for path in sorted(folder.iterdir())]
    text = {name.partition("-")[0]: each for name, each in zip(names, kept, strict=True) if wanted <= each.sums.keys()}
    moments = {named.token: text[content_digest(named.concept)] for named in three}
    north, south, whole = (
        equations_of(tiny, concepts, three, moments, text["ordinary"]) for concepts in (three[:2], three[2:], three)
    )
    for reads, S in whole.S.items():
        torch.testing.assert_close(north.S[reads] + south.S[reads], S, rtol=1e-12, atol=1e-14)
    for layer in layers:
        added = torch.zeros(layer.d_out, layer.d_in, dtype=torch.float64)
        for region in (north, south):
            for term in region.terms[layer.name]:
                added += term.pair.B.double() @ term.right
        S = north.S[layer.reads] + south.S[layer.reads]
        damped = S + 0.01 * S.diagonal().mean() * torch.eye(len(S), dtype=torch.float64)
        dense = torch.linalg.solve(damped, added.T).T
        change = whole.solve()[layer.name]
        solved = change.scale * change.B.double() @ change.A.double()
        torch.testing.assert_close(solved, dense, rtol=1e-4, atol=1e-6 * float(dense.abs().max()))
