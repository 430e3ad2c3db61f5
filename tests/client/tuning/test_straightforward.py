"""Our step and the rivals' of tests/bench/bench_tuning.py compute the same result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.straightforward import SingleEmbedding, Straightforward
from mos_client.pictures.examples import Encoded, Example
from mos_client.tuning.batches import Batch, next_batch
from mos_client.tuning.loop import Tuning
from mos_client.tuning.settings import Method, TuningSettings

RATES = (1e-2, 3e-4, 1e-3)
CONFIG = TuningSettings(
    steps=3,
    batch=3,
    learning_rate_words=RATES[0],
    learning_rate_text=RATES[1],
    learning_rate_unet=RATES[2],
    noise_offset=0.1,
    last_rate=1.0,
    norm_stop=0.0,
)
CAPTIONS = ("photo of a V", "a V in snow, at night")


@pytest.fixture
def pictures(base) -> torch.Tensor:
    return torch.rand(4, 3, base.picture_size, base.picture_size) * 2 - 1


def ours(base, pictures: torch.Tensor, config: TuningSettings = CONFIG) -> tuple[Tuning, list[Batch]]:
    """Our tuning, and the batches that it will see."""
    examples = [Example((Encoded(latent),), CAPTIONS) for latent in base.encode_pictures(pictures)]
    tuning = Tuning(base, "cat", examples, config)
    same = torch.Generator()
    same.set_state(tuning.generator.get_state())
    return tuning, [next_batch(examples, config, 1000, same) for _ in range(config.steps)]


def straightforward(tuning: Tuning) -> Straightforward:
    """The straightforward loop, from the same start as ours."""
    A = {name: A.detach().clone() for name, (A, _) in tuning.pairs.items()}
    return Straightforward(tuning.base, tuning.words.detach().clone(), A, RATES)


def shown(batch: Batch, base, pictures: torch.Tensor) -> torch.Tensor:
    """Return the pictures of a batch's latents."""
    latents = base.encode_pictures(pictures)
    return pictures[[int((latents - latent).abs().sum(dim=(1, 2, 3)).argmin()) for latent in batch.latents]]


def test_the_first_loss_and_every_gradient_are_those_of_one_pass_a_layer(base, pictures):
    tuning, (batch, *_) = ours(base, pictures)
    other = straightforward(tuning)
    loss = other.loss(shown(batch, base, pictures), batch.captions, batch.noise, batch.times)
    loss.backward()
    gradients: list[torch.Tensor] = []
    tuning.optimiser.register_step_pre_hook(
        lambda *_: gradients.extend(parameter.grad.clone() for parameter in tuning.parameters)
    )
    assert next(tuning.steps()).loss == pytest.approx(float(loss.detach()), rel=1e-5)

    of_words, *of_pairs = gradients
    of_table = other.table.grad[len(other.untouched) :].view_as(of_words)
    scale = float(of_words.abs().max())
    assert scale > 0
    torch.testing.assert_close(of_words, of_table, rtol=1e-3, atol=1e-4 * scale)
    of_theirs = [p.grad for group in other.optimiser.param_groups[1:] for p in group["params"]]
    for mine, theirs in zip(of_pairs, of_theirs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()) + 1e-9)


def test_three_steps_have_the_losses_of_the_straightforward_loop_and_leave_its_other_rows_alone(base, pictures):
    tuning, batches = ours(base, pictures)
    other = straightforward(tuning)
    start = other.words.detach().clone()
    theirs = [other.step(shown(b, base, pictures), b.captions, b.noise, b.times) for b in batches]
    assert [step.loss for step in tuning.steps()] == pytest.approx(theirs, rel=1e-3)
    assert torch.equal(other.table[: len(other.untouched)], base.token_table)
    assert not torch.equal(other.words, start)


def test_the_first_loss_with_a_single_embedding_is_that_of_plain_lora(base, pictures):
    tuning, (batch, *_) = ours(base, pictures, replace(CONFIG, method=Method.PLAIN_LORA))
    other = SingleEmbedding(base, "cat", RATES)
    result = other.step(batch.latents, batch.captions, batch.noise, batch.times)
    assert next(tuning.steps()).loss == pytest.approx(result, rel=1e-5)
    adapted = sum(p.numel() for group in other.optimiser.param_groups for p in group["params"])
    assert adapted == sum(p.numel() for p in tuning.parameters), "the same linears get a pair of the same rank"


def test_the_rivals_leave_the_base_as_it_was(tiny):
    before = {name: tensor.clone() for name, tensor in tiny.unet.state_dict().items()}
    pictures = torch.rand(4, 3, 64, 64)
    tuning, (batch, *_) = ours(tiny, pictures)
    straightforward(tuning).step(shown(batch, tiny, pictures), batch.captions, batch.noise, batch.times)
    SingleEmbedding(tiny, "cat", RATES).step(batch.latents, batch.captions, batch.noise, batch.times)
    after = tiny.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not any(p.requires_grad for part in (tiny.unet, tiny.text_encoder) for p in part.parameters())
