"""ED-LoRA tuning: its start, the parameters it changes, and the effect of each setting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from mos_client.pictures.examples import Encoded, Example
from mos_client.tuning.loop import Tuning
from mos_client.tuning.loss import noise_loss
from mos_client.tuning.memory_plan import Plan
from mos_client.tuning.parameters import initial_pair, trained
from mos_common.attention import conditioned
from mos_common.conditioning import read_prompts
from mos_common.edlora import LowRank, attached
from mos_common.errors import ConceptError
from reference.small_tuning import CONFIG, examples, tuning_of, words_at_start


def everything(base) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": tensor
        for part in ("text_encoder", "unet", "vae")
        for name, tensor in getattr(base, part).state_dict().items()
    }


def test_words_start_as_noise_of_the_table_s_spread_and_the_class_word(base):
    words = words_at_start(base)
    (cat,) = base.tokenizer("cat", add_special_tokens=False).input_ids
    assert words.shape == (len(base.layout.cross_attentions), 2, base.token_table.shape[1])
    assert torch.equal(words, words[:1].expand_as(words)), "every layer starts the same"
    torch.testing.assert_close(words[0, 1], base.token_table[cat])
    assert 0.6 < float(words[0, 0].std() / base.token_table.std()) < 1.4


def test_a_class_of_several_tokens_is_their_mean(base):
    ids = base.tokenizer("cat cat dog", add_special_tokens=False).input_ids
    assert len(ids) > 2
    words = words_at_start(base, "cat cat dog")
    torch.testing.assert_close(words[0, 1], base.token_table[ids].mean(dim=0))


def test_a_class_word_without_letters_is_refused(sixteen):
    with pytest.raises(ConceptError, match="give a word like cat"):
        words_at_start(sixteen, "  ")


def test_of_each_pair_a_is_random_and_b_is_zero(sixteen):
    for layer in sixteen.layout.attention:
        A, B = (factor.detach() for factor in initial_pair(layer, 64, torch.Generator().manual_seed(1)))
        assert A.shape == (64, layer.d_in)
        assert B.shape == (layer.d_out, 64)
        assert not B.any()
        rows = torch.randn(1000, layer.d_in, generator=torch.Generator().manual_seed(2))
        assert 0.8 < float((rows @ A.T).std()) < 1.2, "unit variance in, unit variance out"


def test_the_first_step_s_loss_is_the_base_s_own(base):
    """With B = 0 and V = (noise, class word), the base's own loss on the same draws."""
    tuning = tuning_of(base)
    words, latents = tuning.words.detach().clone(), torch.stack([e.views[0].latent for e in examples(base)])
    g = torch.Generator()
    g.set_state(tuning.generator.get_state())
    first_loss = next(tuning.steps()).loss

    chosen = torch.randperm(3, generator=g)[:2]
    texts = [("photo of a <v>", "<v>")[int(torch.randint(2, (1,), generator=g))] for _ in chosen]
    shape = (2, *latents.shape[1:])
    noise = torch.randn(shape, generator=g)
    noise = noise + CONFIG.noise_offset * torch.randn((2, 4, 1, 1), generator=g)
    offset = torch.rand(1, generator=g)
    times = (((offset + torch.tensor([0.0, 0.5])) % 1) * 1000).long()[torch.randperm(2, generator=g)]
    scheduler = DDPMScheduler.from_config({**base.scheduler.config, "clip_sample": False})
    with torch.no_grad(), conditioned(base, read_prompts(base, texts, {"<v>": words})) as unet:
        expected = noise_loss(unet, scheduler, latents[chosen], noise, times)
    assert first_loss == pytest.approx(float(expected), rel=1e-5)


def test_only_words_and_pairs_receive_gradients_and_the_base_stays_bit_identical(base):
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in everything(base).items()}
    hooks = [(module, dict(module._forward_hooks)) for module in (*base.unet.modules(), *base.text_encoder.modules())]
    processors = [cross.module.processor for cross in base.layout.cross_attentions]
    tuning = tuning_of(base)
    start = [tuning.words.detach().clone(), *(B.detach().clone() for _, B in tuning.pairs.values())]
    assert len(list(tuning.steps())) == CONFIG.steps

    assert not any(
        p.requires_grad or p.grad is not None
        for part in (base.text_encoder, base.unet, base.vae)
        for p in part.parameters()
    )
    after = everything(base)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.data_ptr() == before[name][0], f"{name} is another tensor"
        assert torch.equal(tensor, before[name][1]), f"{name} has changed"
    assert all(module._forward_hooks == kept for module, kept in hooks)
    assert all(cross.module.processor is p for cross, p in zip(base.layout.cross_attentions, processors, strict=True))

    trained_now = [tuning.words.detach(), *(B.detach() for _, B in tuning.pairs.values())]
    assert all(not torch.equal(a, b) for a, b in zip(start, trained_now, strict=True)), (
        "every pair and the words were tuned"
    )


def test_the_parameters_are_the_words_and_two_factors_a_layer(base):
    tuning = tuning_of(base)
    groups = [group["params"] for group in tuning.optimiser.param_groups]
    assert groups[0] == [tuning.words] or groups[0][0] is tuning.words
    assert sum(map(len, groups)) == 1 + 2 * len(base.layout.attention)
    text = sum(layer.name.startswith("text_encoder.") for layer in base.layout.attention)
    assert [len(group) for group in groups] == [1, 2 * text, 2 * (len(base.layout.attention) - text)]
    assert [group["full_rate"] for group in tuning.optimiser.param_groups] == [1e-2, 1e-3, 1e-3]


def test_an_abandoned_run_leaves_the_base_as_it_was(sixteen):
    steps = tuning_of(sixteen).steps()
    next(steps)
    steps.close()
    assert not any(module._forward_hooks for module in sixteen.unet.modules())
    assert not any("Layerwise" in type(cross.module.processor).__name__ for cross in sixteen.layout.cross_attentions)


def test_training_with_hooks_is_attaching_the_change(base, make_concept):
    """The hook's W x + B A x is the exchanged weight's (W + BA) x, through the whole model."""
    concept = make_concept(base, rank=2)
    pairs = {name: (pair.A, pair.B) for name, pair in concept.pairs.items()}
    size = base.unet.config.sample_size
    noisy, text = torch.randn(1, 4, size, size), torch.zeros(1, base.text_length, dtype=torch.long)

    def outputs():
        with torch.no_grad():
            features = base.text_encoder(text).last_hidden_state
            return base.unet(noisy, torch.tensor([5]), encoder_hidden_states=features).sample

    with trained(base.layout.attention, pairs):
        hooked = outputs()
    with attached(base, concept.pairs):
        torch.testing.assert_close(hooked, outputs(), rtol=1e-3, atol=1e-4)


def test_changes_are_what_was_tuned_with_alpha_equal_to_the_rank(sixteen):
    tuning = tuning_of(sixteen)
    list(tuning.steps())
    for name, change in tuning.changes().items():
        assert isinstance(change, LowRank)
        assert change.scale == 1
        assert torch.equal(change.B, tuning.pairs[name][1])
        assert not change.A.requires_grad


def test_tuning_lowers_the_loss(tiny):
    """On one picture, before and after, with the same noise, unseen in tuning."""
    config = replace(CONFIG, steps=12, batch=4, learning_rate_unet=5e-3, learning_rate_text=5e-3)
    tuning = Tuning(tiny, "cat", examples(tiny, 1), config)
    latent = tuning.examples[0].views[0].latent
    scheduler = DDPMScheduler.from_config({**tiny.scheduler.config, "clip_sample": False})
    noise = torch.randn((8, *latent.shape), generator=torch.Generator().manual_seed(99))

    def loss() -> float:
        with torch.no_grad(), trained(tuning.layers, tuning.pairs):
            conditioning = read_prompts(tiny, ["photo of a <v>"] * 8, {"<v>": tuning.words})
            times = torch.arange(8) * 125 + 60
            with conditioned(tiny, conditioning) as unet:
                return float(noise_loss(unet, scheduler, latent.expand_as(noise), noise, times))

    before = loss()
    list(tuning.steps())
    assert loss() < 0.9 * before


def test_the_same_seed_is_the_same_run_and_another_is_not(sixteen):
    losses = [[s.loss for s in tuning_of(sixteen, replace(CONFIG, seed=seed)).steps()] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_rates_fall_linearly_from_the_full_rate(sixteen):
    tuning = tuning_of(sixteen, replace(CONFIG, steps=4))
    rates = [tuning.optimiser.param_groups[0]["lr"] for _ in tuning.steps()]
    assert rates == pytest.approx([1e-2, 0.75e-2, 0.5e-2, 0.25e-2])


def test_words_stop_growing_at_a_multiple_of_the_median_norm_of_the_table(base):
    tuning = tuning_of(base, replace(CONFIG, steps=2))
    norms = sorted(float(row.norm()) for row in base.token_table.float())
    assert tuning.norm_stops == pytest.approx([CONFIG.norm_stop * norms[(len(norms) - 1) // 2]], rel=1e-5)


def test_a_word_beyond_the_stop_receives_no_gradient_and_the_others_do(sixteen):
    tuning = tuning_of(sixteen, replace(CONFIG, steps=1))
    with torch.no_grad():
        tuning.words[3, 0] *= 100
    before = tuning.words.detach().clone()
    list(tuning.steps())
    moved = (tuning.words.detach() - before).norm(dim=-1)
    decay = 1 - CONFIG.learning_rate_words * 0.01
    torch.testing.assert_close(tuning.words.detach()[3, 0], before[3, 0] * decay)
    assert (moved[[0, 1, 2, 4, 5]] > 1e-3).all()


def test_a_loss_that_is_not_finite_is_an_error_that_says_when(sixteen):
    tuning = tuning_of(sixteen)
    tuning.examples[0].views[0].latent.fill_(torch.nan)
    tuning.examples = tuning.examples[:1]
    with pytest.raises(ConceptError, match=r"became nan at step 1: lower the learning rates"):
        list(tuning.steps())


def test_a_mask_changes_the_loss_only_where_masked_loss_is_on(tiny):
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1

    def first_loss(masked: bool, **changes: float) -> float:
        views = [Encoded(e.views[0].latent, mask if masked else None) for e in examples(tiny)]
        tuning = Tuning(tiny, "cat", [Example((v,), ("V",)) for v in views], replace(CONFIG, **changes))
        return next(tuning.steps()).loss

    plain = first_loss(masked=False)
    assert first_loss(masked=True) == plain
    assert first_loss(masked=True, background_weight=0.0) != plain
    assert first_loss(masked=False, background_weight=0.0) == plain, "without a mask the whole picture counts"
    assert first_loss(masked=True, attention_weight=0.1) > plain
    assert first_loss(masked=False, attention_weight=0.1) == plain


def test_what_comes_out_is_the_running_average(sixteen):
    """By hand: a₁ = p₁, aₙ = kₙ aₙ₋₁ + (1-kₙ) pₙ with kₙ = min(decay, n/(n+10)), n from 0."""
    tuning = tuning_of(sixteen, replace(CONFIG, averaging=0.6, steps=30))
    expected = None
    for step in tuning.steps():
        now = tuning.words.detach().clone()
        n = step.number - 1
        keep = min(0.6, n / (n + 10))
        expected = now if expected is None else keep * expected + (1 - keep) * now
    with tuning.averaged():
        torch.testing.assert_close(tuning.words.detach(), expected)
    assert torch.equal(tuning.words.detach(), now)
    plain = tuning_of(sixteen, CONFIG)
    list(plain.steps())
    last = [parameter.detach().clone() for parameter in plain.parameters]
    with plain.averaged():
        assert all(torch.equal(a, b) for a, b in zip(last, plain.parameters, strict=True))


def test_rates_may_end_above_zero(sixteen):
    tuning = tuning_of(sixteen, replace(CONFIG, steps=4, last_rate=0.5))
    rates = [tuning.optimiser.param_groups[0]["lr"] for _ in tuning.steps()]
    assert rates == pytest.approx([1e-2, 0.875e-2, 0.75e-2, 0.625e-2])


def test_micro_batches_and_checkpointing_take_the_same_step(base):
    """The gradient of a mean is the mean of the parts' gradients; recomputing changes nothing."""
    config = replace(CONFIG, batch=3, steps=2)
    plans = [Plan(3), Plan(2), Plan(1, checkpointing=True)]
    ends = []
    for plan in plans:
        tuning = tuning_of(base, config, plan)
        losses = [step.loss for step in tuning.steps()]
        ends.append((losses, [parameter.detach().clone() for parameter in tuning.parameters]))
    for losses, values in ends[1:]:
        assert losses == pytest.approx(ends[0][0], rel=1e-4)
        # AdamW's first steps are signs of gradients: tiny differences may flip one
        alike = [
            torch.isclose(a, b, rtol=1e-3, atol=1e-5).float().mean() for a, b in zip(values, ends[0][1], strict=True)
        ]
        assert min(map(float, alike)) > 0.9
