"""Miniatures of the bases that people have: the libraries' own classes with random weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LONGEST = 20
LAYOUTS = ("sd1", "sd2", "xl", "xl without zeros")


def write_miniature(folder: Path, layout: str = "sd1", **parts: Any) -> Path:
    """Write a miniature of a layout, some of its parts replaced by `parts`."""
    with corrections_unsaid():
        miniature(layout, **parts).save_pretrained(folder)
    return folder


@contextmanager
def corrections_unsaid() -> Iterator[None]:
    """Keep diffusers' pipelines from warning of what they correct in old configurations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def miniature(layout: str = "sd1", **parts: Any) -> Any:
    """Return a pipeline of Stable Diffusion 1.x, 2.x (v-prediction, zero SNR) or XL."""
    torch.manual_seed(0)
    if layout.startswith("xl"):
        return _xl(force_zeros_for_empty_prompt=layout == "xl", **parts)
    second = layout == "sd2"
    words = tokenizer("!" if second else "<|endoftext|>")
    kept = {
        "tokenizer": words,
        "text_encoder": text_encoder(words, **({"layers": 4, "hidden_act": "gelu"} if second else {})),
        "unet": unet(use_linear_projection=True, attention_head_dim=(2, 4)) if second else unet(),
        "vae": vae(),
        "scheduler": of_version_two()
        if second
        else diffusers.PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1),
    }
    unneeded = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**kept | unneeded | parts)


def of_version_two() -> diffusers.DDIMScheduler:
    """Return a scheduler like that of Stable Diffusion 2.x with zero SNR."""
    return diffusers.DDIMScheduler(
        **NOISE,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


def tokenizer(pad: str = "<|endoftext|>", **more: Any) -> CLIPTokenizer:
    """Return CLIP's tokenizer over single letters, with the end-of-text token last as in CLIP."""
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [("c", "a"), ("ca", "t</w>")]
    return CLIPTokenizer(
        **{"vocab": vocabulary, "merges": merges, "pad_token": pad, "model_max_length": LONGEST} | more
    )


def text_encoder(words: CLIPTokenizer, *, kind: Any = CLIPTextModel, layers: int = 2, **more: Any) -> Any:
    """Return a random text encoder for a tokenizer."""
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=more.pop("hidden_size", 24),
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        projection_dim=more.pop("projection_dim", 24),
        bos_token_id=words.bos_token_id,
        eos_token_id=more.pop("eos_token_id", words.eos_token_id),
        pad_token_id=words.pad_token_id,
        initializer_range=0.2,
        **more,
    )
    return kind(config).eval()


def unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    """Return a random UNet of two levels."""
    usual: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
    }
    return diffusers.UNet2DConditionModel(**usual | changes).eval()


def vae(**changes: Any) -> diffusers.AutoencoderKL:
    """Return a random VAE."""
    usual: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.3,
        "sample_size": 16,
    }
    return diffusers.AutoencoderKL(**usual | changes).eval()


def xl_unet(*, sizes: int = 6, **changes: Any) -> diffusers.UNet2DConditionModel:
    """Return a random UNet like XL's, which reads a pooled prompt and `sizes` numbers."""
    usual: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "cross_attention_dim": 24 + 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 8 * sizes + 16,
    }
    return unet(**usual | changes)


def edit(file: Path, **changes: object) -> None:
    """Change some keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def by_diffusers(folder: Path, prompt: str, seed: int, **how: Any) -> torch.Tensor:
    """Return the picture of diffusers' own pipeline for a folder, in [-1, 1]."""
    with corrections_unsaid():
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        generator = [torch.Generator().manual_seed(seed)]
        return pipeline([prompt], generator=generator, output_type="pt", **how).images * 2 - 1


def _xl(**parts: Any) -> diffusers.StableDiffusionXLPipeline:
    first, second = tokenizer(), tokenizer("!")
    encoder = text_encoder(
        second, kind=CLIPTextModelWithProjection, hidden_size=32, projection_dim=16, hidden_act="gelu", layers=3
    )
    kept = {
        "tokenizer": first,
        "tokenizer_2": second,
        "text_encoder": text_encoder(first),
        "text_encoder_2": encoder,
        "unet": xl_unet(),
        "vae": vae(scaling_factor=0.2),
        "scheduler": diffusers.EulerDiscreteScheduler(**NOISE, steps_offset=1, timestep_spacing="leading"),
        "add_watermarker": False,
    }
    return diffusers.StableDiffusionXLPipeline(**kept | parts)
