"""Random models with the layout, sizes, speed and memory use of Stable Diffusion 1.5 and XL."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from mos_common.base_model import load_base


def write_random_sd15(folder: Path, *, first_level: bool = False) -> None:
    """Write a random Stable Diffusion 1.5, with the tokenizer and scheduler of `tiny`.

    With `first_level`, its UNet is the finest of the four levels alone: 320 wide, every cell.
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    tiny = load_base("tiny", device="cpu")
    tiny.tokenizer.model_max_length = 77
    level: dict[str, Any] = {
        "block_out_channels": (320,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    pipeline = StableDiffusionPipeline(
        vae=_autoencoder(512),
        text_encoder=CLIPTextModel(_text_config(tiny.tokenizer, 768, 12, 12)),
        tokenizer=tiny.tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768, **(level if first_level else {})),
        scheduler=tiny.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(folder)


def write_random_sdxl(folder: Path, *, width: int = 320) -> None:
    """Write a random Stable Diffusion XL; a smaller `width` of the UNet fits small machines."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tiny = load_base("tiny", device="cpu")
    tiny.tokenizer.model_max_length = 77
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=tuple(max(1, side * width // 64) for side in (1, 2, 4)),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=1280 + 6 * 256,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_autoencoder(1024),
        text_encoder=CLIPTextModel(_text_config(tiny.tokenizer, 768, 12, 12)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tiny.tokenizer, 1280, 32, 20)),
        tokenizer=tiny.tokenizer,
        tokenizer_2=tiny.tokenizer,
        unet=unet,
        scheduler=tiny.scheduler,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(folder)


def _autoencoder(size: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=size,
    )


def _text_config(tokenizer: Any, width: int, layers: int, heads: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
