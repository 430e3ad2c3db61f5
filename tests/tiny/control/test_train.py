"""The training of an adapter: it begins as nothing, and leaves the UNet as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mos_common.control.adapters import read_adapter
from mos_common.errors import StateError
from mos_tiny.recipe.control.conditions import Kind
from mos_tiny.recipe.control.train import AdapterTrainer, build_adapter, read_conditions, save_adapter
from mos_tiny.recipe.trainer import HELD_OUT, TrainingSet, token_ids

COUNT = HELD_OUT + 8


@pytest.fixture
def trainer(tiny) -> AdapterTrainer:
    torch.manual_seed(0)
    latents = {width: torch.randn(COUNT, 4, 4, width // 16).half() for width in (64, 128)}
    captions = {width: token_ids(tiny.tokenizer, ["a red car"]).repeat(COUNT, 1) for width in latents}
    data = TrainingSet(latents, captions, token_ids(tiny.tokenizer, [""])[0])
    # As small as the latents above, of 16 pixels a side and of twice that.
    conditions = {width: np.full((COUNT, 16, width // 4, 3), 255, np.uint8) for width in latents}
    encode = lambda captions: tiny.text_encoder(captions)[0]  # noqa: E731
    return AdapterTrainer(build_adapter(Kind.SKETCH, tiny.unet), tiny.unet, encode, data, conditions)


def test_an_untrained_adapter_adds_nothing(trainer):
    assert trainer.held_out_loss() == pytest.approx(trainer.held_out_loss(adapter=False), rel=1e-6)


def test_a_step_changes_the_adapter_and_not_the_unet(trainer, tiny):
    before = tiny.unet.conv_in.weight.clone()
    for _ in range(6):  # every sixth batch is of wide pictures, and of half as many
        trainer.step_once(4, 1e-2)
    assert trainer.seen == 5 * 4 + 2
    assert trainer.adapter.adapter.conv_in.weight.abs().max() > 0
    assert torch.equal(tiny.unet.conv_in.weight, before)
    assert trainer.held_out_loss() != trainer.held_out_loss(adapter=False)


def test_what_is_written_fits_the_base_in_half_precision(trainer, tiny, tmp_path):
    save_adapter(trainer.average, tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert read_adapter(tmp_path / "adapter", tiny).channels == 1


def test_conditions_are_asked_for_by_name(tmp_path):
    with pytest.raises(StateError, match=r"run mos_tiny.recipe.control.conditions first"):
        read_conditions(tmp_path)
