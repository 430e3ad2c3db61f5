"""DARE: what is dropped, what is left, and whose random numbers it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.dare import DareSettings
from mos_server.fusion.methods.sum import SumSettings


def dare(tiny, concepts, density: float, seed: int = 0, weights=None):
    return fuse(tiny, concepts, DareSettings(sum_weight=1.0, density=density, seed=seed), weights=weights).changes


def test_dare_drops_at_random_rescales_and_can_be_made_again(tiny, two, monkeypatch):
    """By its seed alone; nobody else's random numbers change, a GPU's neither."""
    state = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    once = dare(tiny, two, 0.25)
    assert torch.equal(torch.get_rng_state(), state)
    torch.default_generator.manual_seed(5)
    again = dare(tiny, two, 0.25)
    for name, pair in once.items():
        assert torch.equal(pair.A, again[name].A) and torch.equal(pair.B, again[name].B)
    name = tiny.layout.attention[0].name
    assert not torch.equal(dare(tiny, two, 0.25, seed=1)[name].change(), once[name].change())
    alone = dare(tiny, two[:1], 0.25)
    merged, own = alone[name].change(), two[0].concept.pairs[name].change()
    kept = merged.abs() > 1e-3 * own.abs().max()
    torch.testing.assert_close(merged[kept], 4 * own[kept], rtol=1e-3, atol=1e-4)
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.02)


def test_with_everything_kept_it_is_the_sum(tiny, two):
    weights = {"<alice/cat>": 0.5, "<bob/dog>": 2.0}
    by_sum = fuse(tiny, two, SumSettings(sum_weight=1.0), weights=weights).changes
    for name, pair in dare(tiny, two, 1.0, weights=weights).items():
        torch.testing.assert_close(pair.change(), by_sum[name].change(), rtol=1e-4, atol=1e-5)


def test_a_layer_that_one_concept_leaves_alone_is_merged_with_no_change(tiny, two):
    name = tiny.layout.attention[3].name
    some = replace(two[1].concept, pairs={k: v for k, v in two[1].concept.pairs.items() if k != name})
    fused = dare(tiny, [two[0], NamedConcept("bob", some)], 1.0)[name].change()
    torch.testing.assert_close(fused, two[0].concept.pairs[name].change(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_is_a_share(density):
    with pytest.raises(RequestError, match="density"):
        DareSettings(density=density)
