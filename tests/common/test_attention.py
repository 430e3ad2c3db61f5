"""The one cross-attention: a text for each layer, regions, keys and values kept. diffusers' own processor is the other road."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from mos_common.attention import LayerwiseCrossAttention, RegionText, TextMemory, feature_map_size, layerwise_attention
from mos_common.layers import cross_attentions
from mos_common.regions import Region


def text_features(base, rows: int) -> torch.Tensor:
    """Random features, another for every row and cross-attention layer."""
    return torch.randn(rows, len(cross_attentions(base)), base.text_length, base.token_table.shape[1])


def unet_output(base, noisy: torch.Tensor, text: object) -> torch.Tensor:
    with torch.no_grad():
        return base.unet(noisy, torch.tensor([500]), encoder_hidden_states=text).sample


def noise(base, rows: int) -> torch.Tensor:
    size = base.unet.config.sample_size
    return torch.randn(rows, 4, size, size)


def test_the_same_text_in_every_layer_is_the_plain_unet(base):
    text, noisy = torch.randn(2, base.text_length, base.token_table.shape[1]), noise(base, 2)
    plain = unet_output(base, noisy, text)
    with layerwise_attention(base):
        layerwise = unet_output(base, noisy, TextMemory(text[:, None].expand(-1, len(cross_attentions(base)), -1, -1)))
    torch.testing.assert_close(layerwise, plain, rtol=1e-4, atol=1e-5)


def test_layer_k_in_order_of_execution_reads_encoding_k(base):
    """The other road: diffusers' processors, each call given the next text, counted as the calls come."""
    features, noisy, calls = text_features(base, 2), noise(base, 2), []

    class NextText:
        def __call__(self, attn, hidden_states, encoder_hidden_states, **_):
            calls.append(attn)
            return AttnProcessor()(attn, hidden_states, features[:, len(calls) - 1])

    modules = [module for _, module in cross_attentions(base)]
    before = [module.processor for module in modules]
    for module in modules:
        module.processor = NextText()
    try:
        expected = unet_output(base, noisy, features[:, 0])
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.processor = processor
    with layerwise_attention(base):
        found = unet_output(base, noisy, TextMemory(features))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_every_processor_comes_back_also_after_an_error(base):
    before = [module.processor for _, module in cross_attentions(base)]
    with pytest.raises(ZeroDivisionError), layerwise_attention(base):
        assert all(isinstance(m.processor, LayerwiseCrossAttention) for _, m in cross_attentions(base))
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(before, (m.processor for _, m in cross_attentions(base)), strict=True))


@pytest.fixture
def one(sixteen):
    """One cross-attention module, its input for an unconditional and a prompted row of 4 x 4 cells, and its texts."""
    _, module = cross_attentions(sixteen)[0]
    hidden = torch.randn(2, 16, module.to_q.in_features)
    return module, hidden, text_features(sixteen, 2), text_features(sixteen, 3)


def attend(one, regions: list[Region], first: int = 1) -> torch.Tensor:
    module, hidden, features, own = one
    memory = TextMemory(features, [RegionText(r, own[i]) for i, r in enumerate(regions)], first_regional_row=first)
    with torch.no_grad():
        return LayerwiseCrossAttention(0, 0)(module, hidden, memory)


def plain(one, text: torch.Tensor) -> torch.Tensor:
    module, hidden, _, _ = one
    with torch.no_grad():
        return AttnProcessor()(module, hidden, text.expand(len(hidden), -1, -1))


def test_inside_a_region_its_prompt_outside_the_picture_s(one):
    found = attend(one, [Region("a", 0, 0, 0.5, 1)])
    left = (torch.arange(16) % 4 < 2)[:, None]
    expected = torch.where(left, plain(one, one[3][:1, 0]), plain(one, one[2][:, 0]))
    torch.testing.assert_close(found[1], expected[1])


def test_cells_outside_all_regions_are_the_same_bits(one):
    found, without = attend(one, [Region("a", 0, 0, 0.5, 0.5)]), attend(one, [])
    outside = ~Region("a", 0, 0, 0.5, 0.5).cells(4, 4).flatten()
    torch.testing.assert_close(found[1, outside], without[1, outside], rtol=0, atol=1e-6)
    assert (found[1, ~outside] - without[1, ~outside]).abs().min() > 0


def test_unconditional_rows_know_no_regions(one):
    found, without = attend(one, [Region("a", 0, 0, 1, 1)]), attend(one, [])
    torch.testing.assert_close(found[0], without[0])
    assert (found[1] - without[1]).abs().max() > 1e-4


def test_overlapping_regions_are_averaged(one):
    """Three regions: cell by cell the mean of the attentions to the prompts that hold there."""
    regions = [Region("a", 0, 0, 0.75, 1), Region("b", 0.25, 0, 1, 0.5), Region("c", 0.5, 0.25, 0.75, 1)]
    found = attend(one, regions)[1]
    alone = [plain(one, one[3][i : i + 1, 0])[1] for i in range(3)]
    outside = plain(one, one[2][:, 0])[1]
    for cell in range(16):
        y, x = (cell // 4 + 0.5) / 4, (cell % 4 + 0.5) / 4
        here = [alone[i] for i, r in enumerate(regions) if r.left <= x < r.right and r.top <= y < r.bottom]
        expected = torch.stack(here).mean(dim=0)[cell] if here else outside[cell]
        torch.testing.assert_close(found[cell], expected, rtol=1e-4, atol=1e-5)


def test_a_region_everywhere_is_the_prompt_itself(base):
    features, noisy = text_features(base, 3), noise(base, 2)
    everywhere = [RegionText(Region("a", 0, 0, 1, 1), features[2])]
    with layerwise_attention(base):
        regional = unet_output(base, noisy, TextMemory(features[:2], everywhere, first_regional_row=1))
        direct = unet_output(base, noisy, TextMemory(features[[0, 2]]))
    torch.testing.assert_close(regional, direct, rtol=1e-4, atol=1e-5)


def counted_keys(base, memory: TextMemory, passes: int) -> list[int]:
    calls = {name: 0 for name, _ in cross_attentions(base)}
    handles = []
    for name, module in cross_attentions(base):

        def count(_module, _args, name=name):
            calls[name] += 1

        handles.append(module.to_k.register_forward_pre_hook(count))
    try:
        with layerwise_attention(base):
            for _ in range(passes):
                unet_output(base, noise(base, 2), memory)
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.values())


def test_keys_are_computed_once_per_picture_where_they_are_kept(base):
    regions = [RegionText(Region("a", 0, 0, 1, 1), text_features(base, 1)[0])]
    memory = TextMemory(text_features(base, 2), regions, first_regional_row=1, keep=True)
    assert set(counted_keys(base, memory, passes=3)) == {2}, "one for the prompts, one for the region"


def test_keys_are_computed_anew_where_weights_may_change(base):
    assert set(counted_keys(base, TextMemory(text_features(base, 2)), passes=3)) == {3}


def test_kept_keys_give_the_same_picture(base):
    features, noisy = text_features(base, 2), noise(base, 2)
    kept = TextMemory(features, keep=True)
    with layerwise_attention(base):
        fresh = unet_output(base, noisy, TextMemory(features))
        assert torch.equal(unet_output(base, noisy, kept), fresh)
        assert torch.equal(unet_output(base, noisy, kept), fresh)


@pytest.mark.parametrize(
    ("cells", "aspect", "expected"),
    [
        (256, 1, (16, 16)),
        (1, 1, (1, 1)),
        (512, 2, (16, 32)),
        (128, 2, (8, 16)),
        (32, 2, (4, 8)),
        (96 * 64, 96 / 64, (64, 96)),
        (24 * 16, 96 / 64, (16, 24)),
        (6, 2 / 3, (3, 2)),
        (512, 0.5, (32, 16)),
    ],
)
def test_the_shape_of_a_feature_map_follows_from_its_cells(cells, aspect, expected):
    assert feature_map_size(cells, aspect) == expected


def test_every_feature_map_of_ordinary_picture_sizes_is_found():
    """Latents in multiples of 8, halved up to three times, as in Stable Diffusion."""
    for height in range(8, 136, 8):
        for width in range(8, 136, 8):
            for halvings in range(4):
                h, w = height >> halvings, width >> halvings
                assert feature_map_size(h * w, width / height) == (h, w)
