"""The noise loss, masks and attention regularisation, by the formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from mos_client.tuning.loss import attention_loss, cell_weights, noise_loss, spread_times
from mos_common.attention import WatchedWords, conditioned
from mos_common.conditioning import Conditioning, read_prompts
from mos_common.errors import BaseModelError


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
    features = text[:, None].expand(-1, base.layout.word_layers, -1, -1)
    with torch.no_grad(), conditioned(base, Conditioning(features)) as unet:
        value = noise_loss(unet, scheduler, latents, noise, times)
    torch.testing.assert_close(value, ((predicted - target) ** 2).mean(), rtol=1e-4, atol=1e-6)


def test_gradients_reach_every_layer_s_text(base):
    latents, noise, times, text = batch(base)
    features = text[:, None].repeat(1, base.layout.word_layers, 1, 1).requires_grad_()
    with conditioned(base, Conditioning(features)) as unet:
        noise_loss(unet, scheduler_of(base), latents, noise, times).backward()
    assert (features.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    assert not any(p.grad is not None for p in base.unet.parameters())


def test_a_base_that_predicts_something_else_is_refused_by_name(base):
    latents, noise, times, text = batch(base)
    features = text[:, None].expand(-1, base.layout.word_layers, -1, -1)
    with (
        torch.no_grad(),
        conditioned(base, Conditioning(features)) as unet,
        pytest.raises(BaseModelError, match=f"{base.name}.*'sample'"),
    ):
        noise_loss(unet, scheduler_of(base, prediction_type="sample"), latents, noise, times)


@given(st.integers(1, 40), st.integers(0, 10_000))
def test_times_are_spread_one_to_each_part(count, seed):
    """One random offset makes all times equally likely; sorted neighbours are total/count apart."""
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


def test_weights_choose_which_cells_count_and_pictures_count_alike(base):
    """By hand: per picture Σ w e / Σ w over cells, then the mean over pictures."""
    latents, noise, times, text = batch(base)
    features = text[:, None].expand(-1, base.layout.word_layers, -1, -1)
    masks = torch.zeros(3, *latents.shape[2:])
    masks[0, :2], masks[1, 1:3, 2:], masks[2] = 1, 1, 1
    weights = cell_weights(masks, 0.25)
    scheduler = scheduler_of(base, prediction_type="epsilon")
    with torch.no_grad(), conditioned(base, Conditioning(features)) as unet:
        value = noise_loss(unet, scheduler, latents, noise, times, weights)
        predicted = unet.predict(scheduler.add_noise(latents, noise, times), times)
    error = ((predicted - noise) ** 2).mean(dim=1)
    by_hand = [float((error[i] * weights[i]).sum() / weights[i].sum()) for i in range(3)]
    assert float(value) == pytest.approx(sum(by_hand) / 3, rel=1e-5)
    assert set(weights.unique().tolist()) == {0.25, 1.0}


def test_a_masked_loss_sends_no_gradient_from_the_background(tiny):
    """Errors outside the mask do not count: the loss is the same for any target noise there."""
    latents, noise, times, text = batch(tiny)
    features = text[:, None].expand(-1, tiny.layout.word_layers, -1, -1)
    masks = torch.zeros(3, *latents.shape[2:])
    masks[:, :, :4] = 1
    elsewhere = noise.clone()
    elsewhere[..., 4:] += 3.0
    scheduler = scheduler_of(tiny, prediction_type="epsilon")
    noisy = scheduler.add_noise(latents, noise, times)

    class Fixed:
        """A scheduler with the same noisy latents for any noise: only the target differs."""

        config = scheduler.config

        @staticmethod
        def add_noise(*_: object) -> torch.Tensor:
            return noisy

    with torch.no_grad(), conditioned(tiny, Conditioning(features)) as unet:
        losses = [
            float(noise_loss(unet, Fixed, latents, target, times, cell_weights(masks, weight)))
            for weight in (0.0, 1.0)
            for target in (noise, elsewhere)
        ]
    assert losses[0] == losses[1]
    assert losses[3] > losses[2] + 1


def test_watched_words_are_columns_of_the_attention_s_softmax(base):
    """For one layer by hand: softmax(q kᵀ/√d), averaged over heads, at the watched positions."""
    latents, _, times, text = batch(base)
    features = text[:, None].expand(-1, base.layout.word_layers, -1, -1)
    watched = WatchedWords(torch.tensor([[2, 3], [5, 6], [1, 2]]))
    recorded = {}
    module = base.layout.cross_attentions[1].module
    handle = module.to_q.register_forward_hook(lambda _m, _i, out: recorded.update(query=out))
    with torch.no_grad(), conditioned(base, Conditioning(features), watched=watched) as unet:
        unet.predict(latents, times)
    handle.remove()
    heads = module.heads
    query = recorded["query"].unflatten(2, (heads, -1)).transpose(1, 2)
    key = module.to_k(text).unflatten(2, (heads, -1)).transpose(1, 2)
    attention = (query @ key.transpose(2, 3) / key.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)
    assert sorted(watched.maps) == list(range(len(base.layout.cross_attentions)))
    for row, positions in enumerate(watched.positions):
        torch.testing.assert_close(watched.maps[1][row].T, attention[row][:, positions], rtol=1e-4, atol=1e-6)


def maps_of(subject: torch.Tensor, adjective: torch.Tensor) -> WatchedWords:
    watched = WatchedWords(torch.zeros(1, 2, dtype=torch.long))
    watched.maps[0] = torch.stack([adjective.flatten(), subject.flatten()])[None]
    return watched


def test_attention_that_is_the_mask_costs_nothing_and_attention_outside_costs_most():
    mask = torch.zeros(1, 4, 4)
    mask[0, :2] = 1
    inside, outside = mask[0] * 0.3, (1 - mask[0]) * 0.3
    assert float(attention_loss(maps_of(inside, inside), mask)) == 0
    part = inside.clone()
    part[0, 0] = 0
    whole, some = (float(attention_loss(maps_of(a, inside), mask)) for a in (inside, part))
    assert some > whole, "the subject is to cover all of the concept"
    assert float(attention_loss(maps_of(inside, part), mask)) == 0, "the adjective may choose a part of it"
    assert float(attention_loss(maps_of(inside, outside), mask)) == pytest.approx(0.25), (
        "mean of 0 and 1 x half the cells"
    )
    assert float(attention_loss(maps_of(outside, inside), mask)) == pytest.approx(0.5)


def test_attention_regularisation_moves_attention_onto_the_mask(tiny):
    """Descent on the words alone, with nothing but this loss: attention outside the mask falls."""
    from mos_common.words import tokenise

    words = torch.randn(tiny.layout.word_layers, 2, tiny.word_width).mul_(0.1).requires_grad_()
    text = tokenise(tiny, "photo of a <v>", {"<v>": words})
    latents = torch.randn(1, 4, 16, 16)
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    optimiser = torch.optim.Adam([words], lr=0.03)
    losses = []
    for _ in range(12):
        watched = WatchedWords(torch.tensor([[position for position, _, _ in text.words]]))
        conditioning = read_prompts(tiny, ["photo of a <v>"], {"<v>": words})
        with conditioned(tiny, conditioning, watched=watched) as unet:
            unet.predict(latents, torch.tensor([300]))
        loss = attention_loss(watched, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
