"""Miniature single-file checkpoints of Stable Diffusion 1.x, 2.x and XL, with their folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from reference.ldm import checkpoint_of

MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass
class Miniature:
    """One random model as a diffusers folder and as the tensors of a single file."""

    folder: Path
    tensors: dict[str, Tensor]

    def write(self, file: Path, metadata: dict[str, str] | None = None, *, config: bool = True, **more: Tensor) -> Path:
        """Write the checkpoint, with more tensors, and its configurations beside it."""
        tensors = self.tensors | more
        if file.suffix == ".ckpt":
            torch.save({"state_dict": tensors, "epoch": 3, "global_step": 840_000}, file)
        else:
            save_file(tensors, file, metadata)
        if config:
            shutil.copytree(
                self.folder, file.with_suffix(".config"), ignore=shutil.ignore_patterns(*WEIGHTS), dirs_exist_ok=True
            )
        return file


def miniature(folder: Path, dtype: torch.dtype = torch.float32) -> Miniature:
    """Return the model of a diffusers folder as a miniature."""
    classes = json.loads((folder / "model_index.json").read_text())
    pipeline = getattr(diffusers, classes["_class_name"]).from_pretrained(folder)
    parts = {name: getattr(pipeline, name) for name in MODELS if hasattr(pipeline, name)}
    return Miniature(folder, checkpoint_of(parts, dtype))


def write_random_sd2(folder: Path, tokenizer: Any, prediction_type: str = "v_prediction") -> Path:
    """Write a narrow random model like Stable Diffusion 2: OpenCLIP, linear projections."""
    torch.manual_seed(2)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=20,
        hidden_act="gelu",
        projection_dim=16,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
        norm_num_groups=8,
        use_linear_projection=True,
        upcast_attention=True,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type=prediction_type,
    )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
