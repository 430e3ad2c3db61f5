"""The noise loss, by the formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from mos_client.loss import noise_loss, spread_times
from mos_common.attention import layerwise_attention
from mos_common.errors import BaseModelError
from mos_common.layers import cross_attentions


def scheduler_of(base, **changes):
    return DDPMScheduler.from_config({**base.scheduler.config, "clip_sample": False, **changes})


def batch(base) -> tuple[torch.Tensor, ...]:
    size = base.unet.config.sample_size
    text = torch.randn(3, base.text_length, base.token_table.shape[1])
    return torch.randn(3, 4, size, size), torch.randn(3, 4, size, size), torch.tensor([10, 400, 900]), text


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_the_mean_square_of_what_the_base_predicts_wrongly(base, kind):
    """x_t = √ᾱ x + √(1-ᾱ) ε; the target is ε, or v = √ᾱ ε - √(1-ᾱ) x."""
    latents, noise, times, text = batch(base)
    scheduler = scheduler_of(base, prediction_type=kind)
    kept = scheduler.alphas_cumprod[times].view(3, 1, 1, 1)
    with torch.no_grad():
        predicted = base.unet(
            kept.sqrt() * latents + (1 - kept).sqrt() * noise, times, encoder_hidden_states=text
        ).sample
    target = noise if kind == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * latents
    features = text[:, None].expand(-1, len(cross_attentions(base)), -1, -1)
    with torch.no_grad(), layerwise_attention(base):
        found = noise_loss(base, scheduler, latents, noise, times, features)
    torch.testing.assert_close(found, ((predicted - target) ** 2).mean(), rtol=1e-4, atol=1e-6)


def test_gradients_reach_every_layer_s_text(base):
    latents, noise, times, text = batch(base)
    features = text[:, None].repeat(1, len(cross_attentions(base)), 1, 1).requires_grad_()
    with layerwise_attention(base):
        noise_loss(base, scheduler_of(base), latents, noise, times, features).backward()
    assert (features.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    assert not any(p.grad is not None for p in base.unet.parameters())


def test_a_base_that_predicts_something_else_is_refused_by_name(base):
    latents, noise, times, text = batch(base)
    features = text[:, None].expand(-1, len(cross_attentions(base)), -1, -1)
    with torch.no_grad(), layerwise_attention(base), pytest.raises(BaseModelError, match=f"{base.name}.*'sample'"):
        noise_loss(base, scheduler_of(base, prediction_type="sample"), latents, noise, times, features)


@given(st.integers(1, 40), st.integers(0, 10_000))
def test_times_are_spread_one_to_each_part(count, seed):
    """Shifted by one offset, so every time is as likely as any other; sorted, neighbours are total/count apart."""
    times = spread_times(count, 1000, torch.Generator().manual_seed(seed))
    assert times.dtype == torch.int64
    assert times.min() >= 0
    assert times.max() < 1000
    ordered = times.sort().values.double()
    gaps = torch.cat([ordered.diff(), ordered[:1] + 1000 - ordered[-1:]])
    assert (gaps - 1000 / count).abs().max() <= 1.001


def test_times_come_in_random_order_and_reach_everywhere():
    generator = torch.Generator().manual_seed(0)
    first = [int(spread_times(8, 1000, generator)[0]) for _ in range(300)]
    assert len({t // 100 for t in first}) == 10
    assert max(first) > 950
    assert min(first) < 50
