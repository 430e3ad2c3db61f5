"""Which changes are on the base while a group is recorded."""

from __future__ import annotations

import pytest
import torch

from mos_common.edlora import LowRank
from mos_common.layers import Group
from mos_server.fusion.attachments import attached_changes


@pytest.mark.parametrize(
    ("group", "text_inputs", "unet_inputs", "own", "fused"),
    [
        (Group.TEXT, "fused", "fused", {Group.TEXT}, set()),
        (Group.CROSS, "own", "fused", {Group.TEXT}, set()),
        (Group.CROSS, "fused", "own", set(), {Group.TEXT}),
        (Group.SPATIAL, "fused", "own", set(Group), set()),
        (Group.SPATIAL, "own", "fused", {Group.SPATIAL}, {Group.TEXT, Group.CROSS}),
    ],
)
def test_the_concept_s_own_or_the_fused_changes(tiny, make_concept, group, text_inputs, unet_inputs, own, fused):
    """By group of the layers that are changed; `solved` are those of the groups before."""
    concept = make_concept(tiny)
    group_of = {layer.name: layer.group for layer in tiny.layout.layers}
    before = {Group.TEXT: (), Group.CROSS: (Group.TEXT,), Group.SPATIAL: (Group.TEXT, Group.CROSS)}[group]
    solved = {
        name: LowRank(torch.zeros_like(pair.A), pair.B, pair.alpha)
        for name, pair in concept.pairs.items()
        if group_of[name] in before
    }
    attached = attached_changes(tiny, group, concept, solved, text_inputs=text_inputs, unet_inputs=unet_inputs)
    assert {group_of[name] for name, pair in attached.items() if pair is concept.pairs[name]} == own
    assert {group_of[name] for name, pair in attached.items() if pair is solved.get(name)} == fused
    assert len(attached) == sum(group_of[name] in own | fused for name in concept.pairs)
