"""Iso-C: the published code's case, and a flat spectrum."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.iso_c import IsoCSettings
from reference import dense, rival_cases


def in_the_corner(tiny, named: NamedConcept, B: Tensor, A: Tensor) -> NamedConcept:
    """Return a concept that changes nothing but the corner of one layer, by B·A."""
    layer, rank = tiny.layout.attention[0], len(A)
    wide, tall = torch.zeros(rank, layer.d_in), torch.zeros(layer.d_out, rank)
    wide[:, : A.shape[1]], tall[: len(B)] = A.float(), B.float()
    return replace(named, concept=replace(named.concept, pairs={layer.name: LowRank(wide, tall, float(rank))}))


def test_a_sum_of_full_rank_is_merged_as_by_the_published_code(tiny, three):
    """Zeros around a matrix add none but zero singular values, which are cut."""
    case = rival_cases.case("iso-c")
    concepts = [in_the_corner(tiny, *each) for each in zip(three, case["B"], case["A"], strict=True)]
    (fused,) = fuse(tiny, concepts, IsoCSettings()).changes.values()
    d_out, d_in = case["merged"].shape
    corner = fused.change(torch.float64)[:d_out, :d_in]
    torch.testing.assert_close(corner, case["merged"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused.change().norm(), corner.norm().float())


def test_the_spectrum_is_flat_at_the_sum_s_mean_and_its_space_is_the_sum_s(tiny, three):
    """Against numpy-free dense SVDs: rank Σr, every singular value α times the sum's mean."""
    fused = fuse(tiny, three, IsoCSettings(sum_weight=0.5), weights={"<alice/cat>": 3.0}).changes
    own = [dense.dense(named.concept) for named in three]
    ranks = sum(named.concept.pairs[tiny.layout.attention[0].name].rank for named in three)
    for name in (tiny.layout.attention[0].name, tiny.layout.attention[-1].name):
        U, sigma, Vt = torch.linalg.svd(3 * own[0][name] + own[1][name] + own[2][name])
        merged = fused[name].change(torch.float64)
        values = torch.linalg.svdvals(merged)
        mean = 0.5 * sigma[:ranks].mean()
        torch.testing.assert_close(values[:ranks], mean.expand(ranks), rtol=1e-5, atol=0)
        assert float(values[ranks:].max()) < 1e-6 * float(mean)
        torch.testing.assert_close(merged, mean * U[:, :ranks] @ Vt[:ranks], rtol=0, atol=1e-5 * float(mean))


def test_a_negative_factor_is_refused():
    with pytest.raises(RequestError, match="sum_weight -1"):
        IsoCSettings(sum_weight=-1)
