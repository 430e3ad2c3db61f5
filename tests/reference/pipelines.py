"""The noise that a changed base predicts, by our code and by diffusers' own pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from mos_common.attention import conditioned
from mos_common.conditioning import read_prompts
from mos_common.edlora import LowRank, attached

PROMPT = "a cat, asleep"


def ours(base, pairs: Mapping[str, LowRank]) -> torch.Tensor:
    """Return the UNet's prediction with the changes attached, including the text encoders'."""
    side = base.unet.config.sample_size
    noisy = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), attached(base, pairs), conditioned(base, read_prompts(base, [PROMPT], {})) as unet:
        return unet.predict(noisy, torch.tensor([500]))


def theirs(pipeline) -> torch.Tensor:
    """Return the same by diffusers' pipeline with its loaded adapters."""
    side, more = pipeline.unet.config.sample_size, {}
    noisy = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        encoded = pipeline.encode_prompt(
            PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if isinstance(pipeline, StableDiffusionXLPipeline):
            size = side * pipeline.vae_scale_factor
            more = {"text_embeds": encoded[2], "time_ids": torch.tensor([[size, size, 0, 0, size, size]]).float()}
        return pipeline.unet(
            noisy, torch.tensor([500]), encoder_hidden_states=encoded[0], added_cond_kwargs=more
        ).sample


def pipeline_of(folder: Path, *, xl: bool = False):
    more = {"dtype": torch.float32, "local_files_only": True}
    if xl:
        return StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, **more)
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False, **more)
