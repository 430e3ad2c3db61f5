"""The low-rank pair: on a model, off again, and balanced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

from mos_common.base_model import load_base
from mos_common.edlora import LowRank, MergedWeights, attached
from mos_common.errors import ConceptError


def test_the_change_is_alpha_over_rank_times_b_a():
    pair = LowRank(torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]]), alpha=1.0)
    assert pair.rank == 2
    assert pair.scale == 0.5
    assert pair.change().tolist() == [[0.5, 1.5, 1.5], [1.0, 2.0, 3.0]]


def test_attached_is_the_dense_weight_plus_the_dense_change(base, make_concept):
    concept = make_concept(base)
    layers = base.layout.attention
    rows = {layer.name: torch.randn(3, layer.d_in) for layer in layers}
    expected = {}
    for layer in layers:
        pair = concept.pairs[layer.name]
        dense = layer.module.weight.double() + pair.alpha / pair.rank * pair.B.double() @ pair.A.double()
        bias = None if layer.module.bias is None else layer.module.bias.double()
        expected[layer.name] = linear(rows[layer.name].double(), dense, bias)
    with attached(base, concept.pairs), torch.no_grad():
        for layer in layers:
            torch.testing.assert_close(
                layer.module(rows[layer.name]).double(), expected[layer.name], rtol=1e-4, atol=1e-4
            )


def test_only_the_named_layers_change(sixteen, make_concept):
    first, *others = sixteen.layout.attention
    pair = make_concept(sixteen).pairs[first.name]
    before = [layer.module.weight for layer in others]
    with attached(sixteen, {first.name: pair}):
        assert all(a is layer.module.weight for a, layer in zip(before, others, strict=True))


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
def test_the_very_same_tensors_come_back(base, make_concept, error):
    weights = [layer.module.weight for layer in base.layout.attention]
    bits = [weight.clone() for weight in weights]
    if error:
        with pytest.raises(error), attached(base, make_concept(base).pairs):
            raise error
    else:
        with attached(base, make_concept(base).pairs):
            assert not any(a is layer.module.weight for a, layer in zip(weights, base.layout.attention, strict=True))
    assert all(a is layer.module.weight for a, layer in zip(weights, base.layout.attention, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(weights, bits, strict=True))


def test_a_change_of_the_wrong_shape_leaves_the_base_whole(sixteen, make_concept):
    pairs = dict(make_concept(sixteen).pairs)
    pairs[list(pairs)[-1]] = LowRank(torch.zeros(1, 3), torch.zeros(5, 1), 1.0)
    weights = [layer.module.weight for layer in sixteen.layout.attention]
    with pytest.raises(RuntimeError), attached(sixteen, pairs):
        pytest.fail("attached")
    assert all(a is layer.module.weight for a, layer in zip(weights, sixteen.layout.attention, strict=True))


def test_a_layer_the_base_does_not_have_is_an_error_not_a_silence(sixteen):
    with (
        pytest.raises(ConceptError, match=r"unet\.nowhere"),
        attached(sixteen, {"unet.nowhere": LowRank(torch.zeros(1, 3), torch.zeros(5, 1), 1.0)}),
    ):
        pytest.fail("attached")


def test_attached_models_nest(sixteen, make_concept):
    layer = sixteen.layout.attention[0]
    one, two = (make_concept(sixteen, seed=s).pairs[layer.name] for s in (1, 2))
    before = layer.module.weight
    with attached(sixteen, {layer.name: one}):
        with attached(sixteen, {layer.name: two}):
            torch.testing.assert_close(layer.module.weight.data, before + one.change() + two.change())
        torch.testing.assert_close(layer.module.weight.data, before + one.change())
    assert layer.module.weight is before


def test_attached_in_low_precision_adds_before_it_rounds(make_concept):
    coarse = load_base("tiny", device="cpu", dtype="bfloat16")
    concept, layer = make_concept(coarse), coarse.layout.attention[0]
    expected = (layer.module.weight.float() + concept.pairs[layer.name].change()).bfloat16()
    with attached(coarse, concept.pairs):
        assert torch.equal(layer.module.weight, expected)


@given(
    rank=st.integers(1, 6),
    d_in=st.integers(1, 9),
    d_out=st.integers(1, 9),
    alpha=st.floats(0.1, 64),
    lopsided=st.floats(-6, 6),
    seed=st.integers(0, 1000),
)
def test_balancing_keeps_the_change_and_evens_the_factors(rank, d_in, d_out, alpha, lopsided, seed):
    g = torch.Generator().manual_seed(seed)
    pair = LowRank(
        torch.randn(rank, d_in, generator=g) * 10**lopsided, torch.randn(d_out, rank, generator=g) / 10**lopsided, alpha
    )
    even = pair.balanced()
    assert even.alpha == even.rank == rank
    change = pair.change(torch.float64)
    torch.testing.assert_close(even.change(torch.float64), change, rtol=1e-5, atol=1e-6 * float(change.abs().max()))
    torch.testing.assert_close(even.A.norm(dim=1), even.B.norm(dim=0), rtol=0.03, atol=1e-6)


def test_untrained_factors_stay_finite_when_balanced():
    """B starts at zero: nothing to balance, nothing to divide by."""
    even = LowRank(torch.randn(2, 4), torch.zeros(3, 2), 2.0).balanced()
    assert even.A.isfinite().all()
    assert not even.change().any()
    both = LowRank(torch.zeros(2, 4), torch.zeros(3, 2), 2.0).balanced()
    assert not both.A.any()
    assert not both.B.any()


def test_balanced_factors_lose_least_to_half_precision():
    g = torch.Generator().manual_seed(0)
    pair = LowRank(torch.randn(4, 50, generator=g) * 1e4, torch.randn(40, 4, generator=g) * 1e-7, 4.0)

    def error(p: LowRank) -> float:
        rounded = LowRank(p.A.half(), p.B.half(), p.alpha).change(torch.float64)
        return float((rounded - pair.change(torch.float64)).norm() / pair.change(torch.float64).norm())

    assert error(pair.balanced()) < 1e-3 < error(pair)


def test_a_change_of_a_pointwise_convolution_is_added_to_its_kernel(tiny):
    layer = next(it for it in tiny.layout.layers if isinstance(it.module, nn.Conv2d))
    pair = LowRank(torch.randn(2, layer.d_in), torch.randn(layer.d_out, 2), 2.0)
    before, picture = layer.module.weight, torch.randn(1, layer.d_in, 3, 5)
    without = layer.module(picture)
    with attached(tiny, {layer.name: pair}):
        changed = layer.module(picture)
    expected = without + (layer.rows(picture) @ pair.change().T).transpose(1, 2).reshape(without.shape)
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)
    assert layer.module.weight is before


def test_weights_that_are_kept_are_not_computed_again(sixteen, make_concept):
    """What was written into them since is still there."""
    merged, pairs = MergedWeights(), make_concept(sixteen).pairs
    layer = sixteen.layout.attention[0]
    with attached(sixteen, pairs, merged):
        kept = layer.module.weight
        kept.fill_(7.0)
    with attached(sixteen, {}, merged):  # a picture without a concept, in between
        assert layer.module.weight is not kept
    with attached(sixteen, pairs, merged):
        assert layer.module.weight is kept
        assert kept.eq(7.0).all()


def test_weights_that_are_kept_follow_the_changes_and_the_base(sixteen, make_concept):
    """In the same memory, and with the same bits as if nothing had been kept."""
    merged, layer = MergedWeights(), sixteen.layout.attention[0]
    first, second = (make_concept(sixteen, seed=seed).pairs for seed in (1, 2))

    def of(changes: dict[str, LowRank], kept: MergedWeights | None) -> torch.Tensor:
        with attached(sixteen, changes, kept):
            return layer.module.weight.detach()

    memory = of(first, merged).data_ptr()
    for changes in (second, first, second):
        assert torch.equal(of(changes, merged), of(changes, None))
        assert of(changes, merged).data_ptr() == memory
    before = layer.module.weight.detach().clone()
    try:
        layer.module.weight.data.add_(1.0)
        assert torch.equal(of(second, merged), of(second, None))
    finally:
        layer.module.weight.data.copy_(before)
    assert torch.equal(of(second, merged), of(second, None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_format_are_merged_in_single_precision_or_wider(sixteen, make_concept, dtype):
    name, pair = next(iter(make_concept(sixteen).pairs.items()))
    module = sixteen.layout.by_name[name].module
    original = module.weight
    try:
        module.weight = nn.Parameter(original.detach().to(dtype), requires_grad=False)
        wide = torch.promote_types(dtype, torch.float32)
        expected = (module.weight.to(wide) + pair.change(wide).view(original.shape)).to(dtype)
        with attached(sixteen, {name: pair}):
            torch.testing.assert_close(module.weight.detach(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
    finally:
        module.weight = original
