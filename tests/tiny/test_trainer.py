"""The training of UNet and text encoder: it continues, and its average is used only to save."""

from __future__ import annotations

import pytest
import torch

from mos_common.errors import StateError
from mos_tiny.recipe.states import save_state
from mos_tiny.recipe.trainer import HELD_OUT, Trainer, TrainingSet, build_text_encoder, build_unet, token_ids


def small_trainer(tiny, seed: int = 0) -> Trainer:
    torch.manual_seed(seed)
    latents = {64: torch.randn(HELD_OUT + 8, 4, 4, 4).half(), 128: torch.randn(HELD_OUT + 8, 4, 4, 8).half()}
    captions = {width: token_ids(tiny.tokenizer, ["a red car"]).repeat(HELD_OUT + 8, 1) for width in latents}
    data = TrainingSet(latents, captions, token_ids(tiny.tokenizer, [""])[0])
    return Trainer(build_unet(), build_text_encoder(tiny.tokenizer), tiny.tokenizer, data, "cpu")


def test_a_stopped_training_continues_with_its_weights_averages_and_optimisers(tiny, tmp_path):
    one, other = small_trainer(tiny), small_trainer(tiny, seed=1)
    one.step = 4
    for _ in range(2):  # every sixth batch is of wide pictures, and of half as many
        one.step_once(4, 1e-3)
    assert (one.step, one.seen) == (6, 4 + 2)
    one.save(tmp_path / "state.pt")
    assert set(torch.load(tmp_path / "state.pt", weights_only=True)) == {"params", "ema", "opt", "muon", "seen", "step"}
    assert other.load(tmp_path / "state.pt")
    other.data = one.data
    for trainer in (one, other):
        trainer.reseed()
        trainer.step_once(4, 1e-3)
    for p, q in zip(one.unet.parameters(), other.unet.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    with one.averaged(), other.averaged():
        assert one.held_out_loss() == other.held_out_loss()


def test_the_running_average_is_used_within_its_context_only(tiny):
    trainer = small_trainer(tiny)
    trainer.step_once(4, 1e-2)
    weight = trainer.unet.conv_in.weight.detach().clone()
    with trainer.averaged():
        assert not torch.equal(trainer.unet.conv_in.weight, weight)
        assert not trainer.unet.training
    assert torch.equal(trainer.unet.conv_in.weight, weight) and trainer.unet.training


def test_the_state_of_another_model_is_refused(tiny, tmp_path):
    trainer = small_trainer(tiny)
    assert not trainer.load(tmp_path / "state.pt")
    save_state(tmp_path / "state.pt", {"params": [torch.zeros(3)], "ema": [torch.zeros(3)]})
    with pytest.raises(StateError, match="another model"):
        trainer.load(tmp_path / "state.pt")
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(StateError, match="cannot be read"):
        trainer.load(tmp_path / "state.pt")
