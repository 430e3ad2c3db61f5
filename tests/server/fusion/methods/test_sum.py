"""The scaled sum of the changes, against dense matrices."""

from __future__ import annotations

import torch

from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.sum import SumSettings
from reference import dense
from reference.small_fusion import relative


def test_it_is_the_scaled_sum_of_the_weighted_changes(tiny, two):
    fused = fuse(tiny, two, SumSettings(sum_weight=0.7), weights={"<bob/dog>": 2.0})
    for layer in tiny.layout.attention:
        alice, bob = (dense.dense(named.concept)[layer.name] for named in two)
        assert relative(fused.changes[layer.name].change(torch.float64), 0.7 * (alice + 2 * bob)) < 1e-6
