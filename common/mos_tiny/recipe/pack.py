"""The trained parts as one diffusers folder in half precision, as it is shipped."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from mos_common.files import replacing_folder
from mos_tiny.recipe.tokenizer import save_tokenizer

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "num_train_timesteps": 1000,
}
"""Stable Diffusion's noise with zero terminal SNR (Lin et al., 2023), for flat backgrounds."""


def pack(folder: Path, *, unet: Any, text_encoder: Any, vae: Any, tokenizer: Any) -> None:
    """Write a `StableDiffusionPipeline` folder in float16, atomically; modules stay unchanged."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    halves = {"unet": _half(unet), "text_encoder": _half(text_encoder), "vae": _half(vae)}
    pipeline = StableDiffusionPipeline(
        **halves,
        tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE, steps_offset=1),  # pipelines of 1.x expect it
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    with replacing_folder(folder) as beside:
        pipeline.save_pretrained(beside)
        save_tokenizer(tokenizer, beside / "tokenizer")
        for file in beside.rglob("*.json"):
            _forget_origin(file)


def _half(module: Any) -> Any:
    """Return a contiguous copy in float16 on the CPU."""
    copy = torch.nn.Module.to(deepcopy(module), device="cpu", dtype=torch.float16)
    return copy.to(memory_format=torch.contiguous_format)


def _forget_origin(file: Path) -> None:
    """Remove the path on the machine that trained the model from a configuration."""
    values = json.loads(file.read_text())
    if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
        file.write_text(json.dumps(values, indent=2) + "\n")
