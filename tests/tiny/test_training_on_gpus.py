"""What a CPU can say of training on a GPU: where each tensor lives, and what bfloat16 changes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mos_tiny.recipe.trainer import HELD_OUT, Trainer, TrainingSet, build_text_encoder, build_unet, token_ids


def trainer_on(tiny, device: str, dtype: torch.dtype = torch.float32) -> Trainer:
    torch.manual_seed(0)
    latents = {64: torch.randn(HELD_OUT + 8, 4, 4, 4).half(), 128: torch.randn(HELD_OUT + 8, 4, 4, 8).half()}
    captions = {width: token_ids(tiny.tokenizer, ["a red car"]).repeat(HELD_OUT + 8, 1) for width in latents}
    data = TrainingSet(latents, captions, token_ids(tiny.tokenizer, [""])[0])
    return Trainer(build_unet(), build_text_encoder(tiny.tokenizer), tiny.tokenizer, data, device, dtype)


def test_a_step_mixes_no_tensors_of_the_cpu_with_those_of_the_device(tiny):
    """Fake tensors compute nothing, but refuse operands on two devices, as CUDA does."""
    trainer = trainer_on(tiny, "meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Forward and backward are done then: gradients are clipped by kernels of real devices only.
        with pytest.raises(RuntimeError, match="can't use the foreach API on meta tensors"):
            trainer.step_once(4, 1e-3)
        parameters = [*trainer.unet.parameters(), *trainer.text_encoder.parameters()]
        assert {p.grad.device.type for p in parameters if p.grad is not None} == {"meta"}
        assert sum(p.grad is not None for p in parameters) > 0.9 * len(parameters)
        for optimiser in (trainer._adamw, trainer._muon):
            optimiser.step()
        kept = [state["momentum"] for state in trainer._muon.state.values()]
        assert {momentum.device.type for momentum in kept} == {"meta"}


def test_fake_tensors_would_see_a_module_that_was_left_on_the_cpu(tiny):
    trainer = trainer_on(tiny, "meta")
    trainer.text_encoder = build_text_encoder(tiny.tokenizer)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match="same device"):
        trainer.step_once(4, 1e-3)


def test_bfloat16_gives_the_same_gradients_but_for_its_rounding_and_keeps_weights_in_float32(tiny):
    """bfloat16 has 8 bits: a loss of many terms agrees to a percent, gradients in direction."""
    exact, rounded = trainer_on(tiny, "cpu"), trainer_on(tiny, "cpu", torch.bfloat16)
    found = {}
    for name, trainer in (("exact", exact), ("rounded", rounded)):
        latents = trainer.data.latents[64][:8].float()
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        error, _ = trainer._error(latents, trainer.data.captions[64][:8], torch.arange(8) * 120, noise)
        assert error.dtype == torch.float32
        error.mean().backward()
        gradients = [p.grad.flatten() for p in trainer._parameters if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        found[name] = (float(error.mean().detach()), torch.cat(gradients))
    assert found["rounded"][0] == pytest.approx(found["exact"][0], rel=0.01)
    assert found["rounded"][0] != found["exact"][0]
    assert float(torch.nn.functional.cosine_similarity(found["exact"][1], found["rounded"][1], dim=0)) > 0.99
    losses = []
    for trainer in (exact, rounded):
        for module in (trainer.unet, trainer.text_encoder):
            module.zero_grad()
        trainer.reseed()
        losses.append([trainer.step_once(4, 1e-3) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    state = [*rounded._parameters, *rounded._average, *(s["momentum"] for s in rounded._muon.state.values())]
    assert {tensor.dtype for tensor in state} == {torch.float32}
