"""TIES against a case by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.ties import TiesSettings


def one_layer(tiny, concepts: list[NamedConcept], matrices: list[list[list[float]]]) -> tuple[list[NamedConcept], str]:
    """Concepts that change nothing but the corner of one layer, by these matrices."""
    layer = tiny.layout.attention[0]
    made = []
    for named, matrix in zip(concepts, matrices, strict=True):
        change = torch.zeros(layer.d_out, layer.d_in)
        corner = torch.tensor(matrix)
        change[: len(corner), : corner.shape[1]] = corner
        pair = LowRank(torch.eye(layer.d_in), change, float(layer.d_in))
        made.append(NamedConcept(named.participant, replace(named.concept, pairs={layer.name: pair})))
    return made, layer.name


def ties(tiny, concepts, density: float):
    return fuse(tiny, concepts, TiesSettings(sum_weight=1.0, density=density)).changes


def test_ties_trims_elects_and_averages_those_that_agree(tiny, two):
    """By hand: entry by entry, the sign of the sum wins, and who has that sign is averaged.

    Who was trimmed does not vote.
    """
    concepts, layer = one_layer(tiny, two, [[[4.0, -3.0, 2.0]], [[2.0, 1.0, -6.0]]])
    fused = ties(tiny, concepts, 1.0)[layer].change()
    torch.testing.assert_close(fused[0, :3], torch.tensor([3.0, -3.0, -6.0]))
    size = fused.numel()
    trimmed = ties(tiny, concepts, 2 / size)[layer].change()  # the two largest of each
    torch.testing.assert_close(trimmed[0, :3], torch.tensor([3.0, -3.0, -6.0]))
    one_each = ties(tiny, concepts, 1 / size)[layer].change()
    torch.testing.assert_close(one_each[0, :3], torch.tensor([4.0, 0.0, -6.0]))


def test_a_layer_that_one_concept_leaves_alone_is_merged_with_no_change(tiny, two):
    name = tiny.layout.attention[3].name
    some = replace(two[1].concept, pairs={k: v for k, v in two[1].concept.pairs.items() if k != name})
    fused = ties(tiny, [two[0], NamedConcept("bob", some)], 1.0)[name].change()
    torch.testing.assert_close(fused, two[0].concept.pairs[name].change(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_is_a_share(density):
    with pytest.raises(RequestError, match="density"):
        TiesSettings(density=density)
