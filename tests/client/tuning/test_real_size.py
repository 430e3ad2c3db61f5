"""Two optimiser steps on random models as large as Stable Diffusion 1.5 and XL, on the CPU.

Run with `-m slow`; prints seconds and peak memory. Weights are bfloat16 and latents 32 x 32, so
that XL fits into 20 GiB.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mos_client.pictures.examples import Encoded, Example
from mos_client.tuning.loop import Tuning
from mos_client.tuning.settings import TuningSettings
from mos_client.tuning.tune_folder import tuned_concept
from mos_common.base_model import Base
from mos_common.concept import check_fits
from mos_common.concept_file import concept_from_bytes, concept_to_bytes

pytestmark = pytest.mark.slow
GIB = 2**30
TEXT_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
TEXT_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
UNET_15 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
UNET_XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def filled(make: Callable[[], nn.Module]) -> Any:
    """Return a model with random weights that keep variances.

    It is built on the meta device, since its own initialisation takes minutes.
    """
    with torch.device("meta"):
        model = make()
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    block = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if isinstance(module, nn.LayerNorm | nn.GroupNorm) or weight.ndim == 1:
                weight.data.fill_(1.0 if name == "weight" else 0.0)
                continue
            flat = weight.data.view(-1)
            for part in flat.split(len(block)):
                part.copy_(block[: len(part)])
            flat.mul_(0.02 if isinstance(module, nn.Embedding) else weight[0].numel() ** -0.5)
        for name, buffer in module.named_buffers(recurse=False):
            assert name == "position_ids"
            buffer.copy_(torch.arange(buffer.shape[-1]))
    return model.requires_grad_(False).eval()


def text_config(tokenizer: Any, sizes: dict[str, Any]) -> CLIPTextConfig:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **sizes, **ids)


def base_of(kind: str, make_tokenizer: Callable[..., Any]) -> Base:
    tokenizer = make_tokenizer()
    parts = {
        "text_encoder": filled(lambda: CLIPTextModel(text_config(tokenizer, TEXT_L))),
        "unet": filled(lambda: UNet2DConditionModel(**(UNET_XL if kind == "XL" else UNET_15))),
    }
    if kind == "XL":
        parts["text_encoder_2"] = filled(lambda: CLIPTextModelWithProjection(text_config(tokenizer, TEXT_G)))
        parts["tokenizer_2"] = make_tokenizer()
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, **levels)  # gives sizes only: it is not run
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    return Base(kind, tokenizer, vae=vae, scheduler=scheduler, fingerprint="0" * 64, **parts)


@pytest.mark.parametrize(
    ("kind", "parameters", "attentions", "words", "megabytes"),
    [("1.5", 0.86e9, 16, 16, (2, 4)), ("XL", 2.57e9, 70, 11, (8, 16))],
)
def test_two_steps_of_real_size(kind, parameters, attentions, words, megabytes, make_tokenizer, capsys):
    """Sizes are right, losses finite, every pair is tuned, and the concept file is small."""
    started = time.monotonic()
    base = base_of(kind, make_tokenizer)
    assert sum(p.numel() for p in base.unet.parameters()) == pytest.approx(parameters, rel=0.01)
    assert (len(base.layout.cross_attentions), base.layout.word_layers) == (attentions, words)
    made = time.monotonic()
    g = torch.Generator().manual_seed(0)
    examples = [Example((Encoded(torch.randn(4, 32, 32, generator=g)),), ("photo of a V", "V")) for _ in range(3)]
    tuning = Tuning(base, "cat", examples, TuningSettings(2, 1, 1e-3, 1e-5, 1e-4, 0.01))
    losses = [step.loss for step in tuning.steps()]
    ended = time.monotonic()
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    still = {name for name, (_, B) in tuning.pairs.items() if not B.any()}
    unread = "text_encoder.text_model.encoder.layers.11." if kind == "XL" else "-"  # XL reads the last but one layer
    assert all(name.startswith(unread) for name in still)
    data = concept_to_bytes(tuned_concept(tuning, "<cat>"))
    check_fits(concept_from_bytes(data), base)
    assert megabytes[0] < len(data) / 1e6 < megabytes[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    with capsys.disabled():
        print(
            f"\nStable Diffusion {kind}: made in {made - started:.0f} s, two steps in {ended - made:.0f} s, "
            f"peak {peak:.1f} GiB, concept file {len(data) / 1e6:.1f} MB, losses {losses[0]:.2f} {losses[1]:.2f}"
        )
    assert peak < 20
