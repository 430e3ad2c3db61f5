"""Choose the changes attached to the base while a group of layers is recorded for a concept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.edlora import LowRank
from mos_common.layers import Group

Inputs = Literal["own", "fused"]
Changes = Mapping[str, LowRank]


def attached_changes(
    base: Base, group: Group, concept: Concept, solved: Changes, *, text_inputs: Inputs, unet_inputs: Inputs
) -> Changes:
    """Return the changes to attach, by layer.

    `solved` are the fused changes of the groups before this one. Keys and values read the features
    of the concept's own or of the fused text encoder. The rest of the UNet reads activations of the
    concept's own model, or of the fused text encoder, keys and values with the concept's own
    remaining changes.
    """
    own = concept.pairs
    group_of = {name: layer.group for name, layer in base.layout.by_name.items()}
    text, spatial = (
        {name: pair for name, pair in own.items() if group_of[name] is part} for part in (Group.TEXT, Group.SPATIAL)
    )
    inputs = {Group.TEXT: "own", Group.CROSS: text_inputs, Group.SPATIAL: unet_inputs}
    attached: Mapping[tuple[Group, str], Changes] = {
        (Group.TEXT, "own"): text,
        (Group.CROSS, "own"): text,
        (Group.CROSS, "fused"): solved,
        (Group.SPATIAL, "own"): own,
        (Group.SPATIAL, "fused"): {**solved, **spatial},
    }
    return dict(attached[group, inputs[group]])
