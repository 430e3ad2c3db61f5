"""The one cross-attention: a text for each layer, regions, kept keys and values.

The other road is diffusers' own processor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from mos_common.attention import (
    ConditionedUNet,
    LayerwiseCrossAttention,
    conditioned,
)
from mos_common.conditioning import Conditioning, RegionText
from mos_common.regions import Region
from mos_common.shapes import Box

TIME = torch.tensor([500])


def text_features(base, rows: int) -> torch.Tensor:
    """Random features, another for every row and word layer."""
    return torch.randn(rows, base.layout.word_layers, base.text_length, base.token_table.shape[1])


def by_diffusers(base, noisy: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return base.unet(noisy, TIME, encoder_hidden_states=text).sample


def by_us(base, noisy: torch.Tensor, conditioning: Conditioning, passes: int = 1, **more) -> list[torch.Tensor]:
    """Return the UNet's predictions of some passes within one block."""
    with torch.no_grad(), conditioned(base, conditioning, **more) as unet:
        return [unet.predict(noisy, TIME) for _ in range(passes)]


def processors(base) -> list[object]:
    return [cross.module.processor for cross in base.layout.cross_attentions]


def noise(base, rows: int) -> torch.Tensor:
    size = base.unet.config.sample_size
    return torch.randn(rows, 4, size, size)


def test_the_same_text_in_every_layer_is_the_plain_unet(base):
    text, noisy = torch.randn(2, base.text_length, base.token_table.shape[1]), noise(base, 2)
    (layerwise,) = by_us(base, noisy, Conditioning(text[:, None].expand(-1, base.layout.word_layers, -1, -1)))
    torch.testing.assert_close(layerwise, by_diffusers(base, noisy, text), rtol=1e-4, atol=1e-5)


def test_layer_k_in_order_of_execution_reads_encoding_k(base):
    """The other road: diffusers' processors, each call given the next text."""
    features, noisy, calls = text_features(base, 2), noise(base, 2), []

    class NextText:
        def __call__(self, attn, hidden_states, encoder_hidden_states, **_):
            calls.append(attn)
            return AttnProcessor()(attn, hidden_states, features[:, len(calls) - 1])

    modules, before = [cross.module for cross in base.layout.cross_attentions], processors(base)
    for module in modules:
        module.processor = NextText()
    try:
        expected = by_diffusers(base, noisy, features[:, 0])
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.processor = processor
    (attended,) = by_us(base, noisy, Conditioning(features))
    torch.testing.assert_close(attended, expected, rtol=1e-4, atol=1e-5)


def test_every_processor_comes_back_also_after_an_error(base):
    before = processors(base)
    with pytest.raises(ZeroDivisionError), conditioned(base, Conditioning(text_features(base, 1))):
        assert all(isinstance(processor, LayerwiseCrossAttention) for processor in processors(base))
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(before, processors(base), strict=True))


def test_a_unet_predicts_only_within_the_block_that_conditions_it(tiny):
    """Outside it the text of layer 0 would be read everywhere; inside another block, that one's."""
    noisy = noise(tiny, 1)
    with torch.no_grad(), conditioned(tiny, Conditioning(text_features(tiny, 1))) as outer:
        expected = outer.predict(noisy, TIME)
        with conditioned(tiny, Conditioning(text_features(tiny, 1))) as inner:
            assert not torch.equal(inner.predict(noisy, TIME), expected)
            with pytest.raises(AssertionError, match="conditioned"):
                outer.predict(noisy, TIME)
        assert torch.equal(outer.predict(noisy, TIME), expected)
    with pytest.raises(AssertionError, match="conditioned"):
        outer.predict(noisy, TIME)


@pytest.fixture
def one(sixteen):
    """A base, an input of its first cross-attention (unconditional and prompted), and texts."""
    hidden = torch.randn(2, 16, sixteen.layout.cross_attentions[0].module.to_q.in_features)
    return sixteen, hidden, text_features(sixteen, 2), text_features(sixteen, 3)


def attend(
    one, regions: list[Region], progress: float = 0.0, negatives: dict[int, torch.Tensor] | None = None
) -> torch.Tensor:
    base, hidden, features, own = one
    negatives = negatives or {}
    texts = tuple(RegionText(r, own[i], negatives.get(i)) for i, r in enumerate(regions))
    told = Conditioning(features, guidance=3.0, regions=texts, size=(4, 4))
    unet = ConditionedUNet(base, told, progress=progress)
    with torch.no_grad():
        return LayerwiseCrossAttention(0, unet)(base.layout.cross_attentions[0].module, hidden)


def plain(one, text: torch.Tensor) -> torch.Tensor:
    base, hidden, _, _ = one
    with torch.no_grad():
        return AttnProcessor()(base.layout.cross_attentions[0].module, hidden, text.expand(len(hidden), -1, -1))


def test_inside_a_region_its_prompt_outside_the_picture_s(one):
    attended = attend(one, [Region("a", Box(0, 0, 0.5, 1))])
    left = (torch.arange(16) % 4 < 2)[:, None]
    expected = torch.where(left, plain(one, one[3][:1, 0]), plain(one, one[2][:, 0]))
    torch.testing.assert_close(attended[1], expected[1])


def test_cells_outside_all_regions_are_those_of_the_prompt(one):
    attended, without = attend(one, [Region("a", Box(0, 0, 0.5, 0.5))]), attend(one, [])
    outside = torch.arange(16).reshape(4, 4)[2:].flatten()  # the lower half
    torch.testing.assert_close(attended[1, outside], without[1, outside], rtol=0, atol=1e-6)
    assert (attended[1, [0, 1, 4, 5]] - without[1, [0, 1, 4, 5]]).abs().min() > 0


def test_unconditional_rows_know_no_regions(one):
    attended, without = attend(one, [Region("a", Box(0, 0, 1, 1))]), attend(one, [])
    torch.testing.assert_close(attended[0], without[0])
    assert (attended[1] - without[1]).abs().max() > 1e-4


def test_overlapping_regions_are_averaged(one):
    """Three regions: cell by cell the mean of the attentions to the prompts that hold there."""
    regions = [Region("a", Box(0, 0, 0.75, 1)), Region("b", Box(0.25, 0, 1, 0.5)), Region("c", Box(0.5, 0.25, 0.75, 1))]
    attended = attend(one, regions)[1]
    alone = [plain(one, one[3][i : i + 1, 0])[1] for i in range(3)]
    outside = plain(one, one[2][:, 0])[1]
    for cell in range(16):
        y, x = (cell // 4 + 0.5) / 4, (cell % 4 + 0.5) / 4
        here = [
            alone[i]
            for i, r in enumerate(regions)
            if r.shape.left <= x < r.shape.right and r.shape.top <= y < r.shape.bottom
        ]
        expected = torch.stack(here).mean(dim=0)[cell] if here else outside[cell]
        torch.testing.assert_close(attended[cell], expected, rtol=1e-4, atol=1e-5)


def softmax_by_hand(one, row: int, text: torch.Tensor) -> np.ndarray:
    """The first attention of one row before its last linear, by the formula in float64."""
    base, hidden, _, _ = one
    attn = base.layout.cross_attentions[0].module

    def heads(linear, rows: torch.Tensor) -> np.ndarray:
        values = rows.double().numpy() @ linear.weight.detach().double().numpy().T
        return values.reshape(len(rows), attn.heads, -1).transpose(1, 0, 2)

    q, k, v = heads(attn.to_q, hidden[row]), heads(attn.to_k, text), heads(attn.to_v, text)
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[2]))
    attended = scores / scores.sum(axis=2, keepdims=True) @ v
    return attended.transpose(1, 0, 2).reshape(len(hidden[row]), -1)


def last_linear(one, attended: np.ndarray) -> torch.Tensor:
    linear = one[0].layout.cross_attentions[0].module.to_out[0]
    return torch.tensor(attended @ linear.weight.detach().double().numpy().T + linear.bias.detach().numpy()).float()


def test_two_regions_that_split_a_picture_are_the_plain_formula_cell_by_cell(one):
    attended = attend(one, [Region("a", Box(0, 0, 0.5, 1)), Region("b", Box(0.5, 0, 1, 1))])[1]
    parts = [softmax_by_hand(one, 1, one[3][i, 0]) for i in range(2)]
    expected = np.stack([parts[0 if cell % 4 < 2 else 1][cell] for cell in range(16)])
    torch.testing.assert_close(attended, last_linear(one, expected), rtol=1e-4, atol=1e-5)


def test_soft_edges_priorities_and_what_is_kept_are_the_plain_formula_in_every_cell(one):
    """The shares of the equation's sum are written down by hand: a ramp over two columns."""
    regions = [Region("a", Box(0, 0, 0.5, 1), edge=0.5, priority=1, keeps=0.2), Region("b", Box(0, 0, 1, 1))]
    ramp = np.tile([1, 0.75, 0.25, 0], 4)[:, None]
    whole, a, b = softmax_by_hand(one, 1, one[2][1, 0]), *(softmax_by_hand(one, 1, one[3][i, 0]) for i in (0, 1))
    expected = 0.8 * ramp * a + (1 - ramp) * b + 0.2 * ramp * whole
    torch.testing.assert_close(attend(one, regions)[1], last_linear(one, expected), rtol=1e-4, atol=1e-5)


def test_a_region_s_own_negative_replaces_the_picture_s_in_its_unconditional_cells(one):
    own = text_features(one[0], 1)[0]
    regions = [Region("a", Box(0, 0, 0.5, 1), negative="x"), Region("b", Box(0.5, 0, 1, 1))]
    attended = attend(one, regions, negatives={0: own})
    left = (np.arange(16) % 4 < 2)[:, None]
    expected = np.where(left, softmax_by_hand(one, 0, own[0]), softmax_by_hand(one, 0, one[2][0, 0]))
    torch.testing.assert_close(attended[0], last_linear(one, expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attended[1], attend(one, regions)[1], rtol=1e-5, atol=1e-6)


def test_a_region_that_does_not_hold_leaves_attention_as_it_is_without_it(one):
    region = Region("a", Box(0, 0, 1, 1), start=0.25, end=0.5)
    without = attend(one, [])
    for progress, holds in ((0.0, False), (0.25, True), (0.5, False), (0.75, False)):
        assert torch.equal(attend(one, [region], progress), without) is not holds


def test_each_picture_of_a_batch_has_the_regions_attention_that_it_has_alone(tiny):
    regions = [
        Region("a", Box(0, 0, 0.5, 1), negative="x", end=0.5),
        Region("b", Box(0.3, 0, 1, 0.7), edge=0.3),
        Region("c", Box(0.5, 0, 1, 1), negative="y", priority=1),
    ]
    texts, features, noisy = text_features(tiny, 5), text_features(tiny, 6), noise(tiny, 6)
    told = tuple(RegionText(r, texts[i], texts[3 + i // 2] if r.negative else None) for i, r in enumerate(regions))
    size = tuple(noisy.shape[2:])
    for progress in (0.0, 0.6):
        with torch.no_grad(), conditioned(tiny, Conditioning(features, 3.0, told, size)) as unet:
            together = unet.predict(noisy, TIME, progress)
        for i in range(3):
            alone = Conditioning(features[[i, 3 + i]], 3.0, told, size)
            with torch.no_grad(), conditioned(tiny, alone, keep=True) as unet:
                for_one = unet.predict(noisy[[i, 3 + i]], TIME, progress)
            torch.testing.assert_close(for_one, together[[i, 3 + i]], rtol=1e-4, atol=1e-5)


def test_a_region_everywhere_is_the_prompt_itself(base):
    features, noisy = text_features(base, 3), noise(base, 2)
    everywhere = (RegionText(Region("a", Box(0, 0, 1, 1)), features[2]),)
    (regional,) = by_us(base, noisy, Conditioning(features[:2], guidance=3.0, regions=everywhere, size=noisy.shape[2:]))
    (direct,) = by_us(base, noisy, Conditioning(features[[0, 2]]))
    torch.testing.assert_close(regional, direct, rtol=1e-4, atol=1e-5)


def counted_keys(base, passes: Callable[[], object]) -> set[int]:
    """How often the cross-attentions compute their keys: the counts that there are."""
    calls, handles = dict.fromkeys(base.layout.cross_attentions, 0), []
    for cross in base.layout.cross_attentions:

        def count(_module, _args, cross=cross):
            calls[cross] += 1

        handles.append(cross.module.to_k.register_forward_pre_hook(count))
    try:
        passes()
    finally:
        for handle in handles:
            handle.remove()
    return set(calls.values())


def test_kept_keys_of_prompts_and_regions_are_computed_once(base):
    regions = (RegionText(Region("a", Box(0, 0, 1, 1)), text_features(base, 1)[0]),)
    noisy = noise(base, 2)
    told = Conditioning(text_features(base, 2), guidance=3.0, regions=regions, size=noisy.shape[2:])
    assert counted_keys(base, lambda: by_us(base, noisy, told, 3, keep=True)) == {1}


def test_keys_that_are_not_kept_are_computed_in_every_pass(base):
    told = Conditioning(text_features(base, 2))
    assert counted_keys(base, lambda: by_us(base, noise(base, 2), told, 3)) == {3}


def test_kept_keys_give_the_same_prediction(base):
    told, noisy = Conditioning(text_features(base, 2)), noise(base, 2)
    (fresh,) = by_us(base, noisy, told)
    assert all(torch.equal(again, fresh) for again in by_us(base, noisy, told, 2, keep=True))


def test_keys_of_what_is_trained_are_not_kept(tiny):
    told = Conditioning(text_features(tiny, 1).requires_grad_())
    with conditioned(tiny, told, keep=True) as unet, pytest.raises(AssertionError, match="gradient"):
        unet.predict(noise(tiny, 1), TIME)


def test_a_backward_pass_with_checkpointing_reads_the_same_conditioning(sixteen):
    """What the UNet forgot is computed again within the block: the gradients are the same."""
    text, noisy, gradients = text_features(sixteen, 1), noise(sixteen, 1), []
    for forgets in (False, True):
        features = text.clone().requires_grad_()
        if forgets:
            sixteen.unet.enable_gradient_checkpointing()
            sixteen.unet.train()
        try:
            with conditioned(sixteen, Conditioning(features)) as unet:
                unet.predict(noisy, TIME).square().mean().backward()
        finally:
            sixteen.unet.disable_gradient_checkpointing()
            sixteen.unet.eval()
        gradients.append(features.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    assert gradients[0].abs().max() > 0
