"""The base model that every participant starts from: how to load it, and its properties.

No property of a model is hard-coded here. The number of cross-attention layers, their widths and
the end-of-text token are read from the loaded modules, so `tiny`, Stable Diffusion 1.5 and Stable
Diffusion XL use the same code.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mos_common.base_files import find_base
from mos_common.base_loading import foreign_files, load_parts, settle_old_size
from mos_common.base_names import TINY
from mos_common.errors import RequestError
from mos_common.fingerprint import fingerprint_in_bfloat16, fingerprints_of
from mos_common.presets import Preset, preset_for

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from mos_common.layers import Layout

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """A frozen latent diffusion model in eval mode, laid out like Stable Diffusion 1.x or XL.

    `scheduler` is the base's own; copy it to denoise with it. `fingerprint` identifies the model,
    whether it was downloaded in float16 or float32; `legacy_fingerprint` is its fingerprint in
    release 0.1.0 (`fingerprint.py`). `rounded`: the weights were rounded to bfloat16.
    `text_encoder_2` and `tokenizer_2` exist in XL only; both tokenizers have the same vocabulary.
    `force_zeros_for_empty_prompt`: without a negative prompt, guidance moves away from zeros, as XL
    asks, and not from the encoded empty text. It is no part of the fingerprint: concepts are tuned
    without guidance, so they fit either way, and what is drawn or recorded is keyed by it.
    `runs_on` is where its modules compute, if they rest elsewhere (`pipeline/offload.py`).
    """

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: SchedulerMixin
    fingerprint: str
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    legacy_fingerprint: str = ""
    rounded: bool = False
    force_zeros_for_empty_prompt: bool = False
    runs_on: torch.device | None = None

    @cached_property
    def layout(self) -> Layout:
        """The layers and cross-attentions; computed once, on first access."""
        from mos_common.layers import layout_of

        return layout_of(self.text_encoders, self.unet)

    @cached_property
    def bfloat16_fingerprint(self) -> str:
        """The fingerprint of a bfloat16 copy of this base, for the message of a refusal."""
        return fingerprint_in_bfloat16(self)

    @property
    def text_encoders(self) -> list[CLIPTextModel | CLIPTextModelWithProjection]:
        """One text encoder, or the two of XL; the UNet reads their features side by side."""
        return [self.text_encoder] if self.text_encoder_2 is None else [self.text_encoder, self.text_encoder_2]

    @property
    def tokenizers(self) -> list[CLIPTokenizer]:
        """The tokenizer of each text encoder: they differ in how they pad."""
        return [self.tokenizer] if self.tokenizer_2 is None else [self.tokenizer, self.tokenizer_2]

    @property
    def token_tables(self) -> list[Tensor]:
        """The embeddings of each text encoder, (tokens, width of the encoder)."""
        return [encoder.get_input_embeddings().weight for encoder in self.text_encoders]

    @property
    def token_table(self) -> Tensor:
        """The embeddings of the first text encoder, one row per token."""
        return self.token_tables[0]

    @property
    def word_width(self) -> int:
        """The width of a word's embedding: those of all text encoders side by side."""
        return sum(table.shape[1] for table in self.token_tables)

    def token_rows(self, ids: list[int]) -> Tensor:
        """Return the embeddings of some tokens, (tokens, word_width), float32 on the CPU."""
        return torch.cat([table[ids].float().cpu() for table in self.token_tables], dim=1)

    @property
    def device(self) -> torch.device:
        """The device that the UNet computes on."""
        return self.runs_on or _device_of(self.unet)

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the UNet's weights."""
        return _dtype_of(self.unet)

    @property
    def preset(self) -> Preset:
        """The recommended settings for tuning and drawing with this base."""
        return preset_for(self.name, dict(self.unet.config))

    @property
    def text_length(self) -> int:
        """Token positions of one prompt, including the start and end tokens."""
        return min(int(self.text_encoder.config.max_position_embeddings), int(self.tokenizer.model_max_length))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the UNet denoises."""
        return int(self.unet.config.in_channels)

    @property
    def pixels_per_latent(self) -> int:
        """The width of one latent cell, in pixels."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_unit(self) -> int:
        """The number of pixels of which heights and widths are multiples if every level divides.

        The UNet halves latents at every level but the last, and rounds odd sizes up.
        """
        return self.pixels_per_latent * int(2 ** (len(self.unet.config.block_out_channels) - 1))

    @property
    def picture_size(self) -> int:
        """The side of the square pictures this base was trained on, in pixels."""
        return int(self.unet.config.sample_size) * self.pixels_per_latent

    @torch.no_grad()
    def encode_pictures(self, pictures: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n c h w"]:
        """Return the latents of pictures in [-1, 1]: the mean of the VAE's posterior, scaled."""
        mean: Tensor = self.vae.encode(pictures.to(self.device, _dtype_of(self.vae))).latent_dist.mean
        return mean * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 height width"]:
        """Return the pictures of latents, in [-1, 1], float32 on the CPU."""
        unscaled = latents.to(self.device, _dtype_of(self.vae)) / float(self.vae.config.scaling_factor)
        decoded: Tensor = self.vae.decode(unscaled).sample
        return decoded.float().clamp(-1, 1).cpu()


def load_base(name: str = TINY, *, device: str | None = None, dtype: str | None = None) -> Base:
    """Load `tiny`, a diffusers folder, a single-file checkpoint or a model of the hub.

    `device` and `dtype` default to a GPU in float16 if there is one, else the CPU in float32.

    Raises:
        BaseModelError: the folder is missing, is not a diffusion model, or is neither of the Stable
            Diffusion 1.x nor the XL layout.
        RequestError: the device or dtype does not exist here.

    """
    target_device, target_dtype = choose_device(device), choose_dtype(dtype, choose_device(device))
    parts = load_parts(name, find_base(name))
    with foreign_files(name):
        named = fingerprints_of(parts)
        settle_old_size(parts)
    for part in ("text_encoder", "text_encoder_2", "unet", "vae"):
        if part not in parts:
            continue
        module: nn.Module = parts[part].requires_grad_(False).eval()
        # XL's VAE overflows in float16; its configuration has a flag for that.
        wide = part == "vae" and target_dtype is torch.float16 and parts[part].config.force_upcast
        nn.Module.to(
            module, device=target_device, dtype=torch.float32 if wide else target_dtype
        )  # diffusers' own `to` logs a warning about every cast
    parts["unet"].to(memory_format=torch.channels_last)
    return Base(name=name, fingerprint=named.current, legacy_fingerprint=named.legacy, rounded=named.rounded, **parts)


def base_path(name: str) -> Path:
    """Return the folder with the configurations of a base model; a diffusers folder has all of it.

    Raises:
        BaseModelError: there is none.

    """
    return find_base(name).folder


def choose_device(device: str | None) -> torch.device:
    """Return the requested device, or the best available one.

    Raises:
        RequestError: there is no such device here.

    """
    if device is None:
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"--device {device} cannot be used here ({str(error).splitlines()[0]}): try --device cpu"
        ) from error
    return chosen


def choose_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """Return the requested number format; by default float16 on a GPU, float32 on a CPU."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if dtype not in DTYPES:
        raise RequestError(f"unknown --dtype {dtype}; known: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def fingerprint_of(name: str) -> str:
    """Return the fingerprint of a base model without keeping it loaded."""
    return load_base(name, device="cpu", dtype="float32").fingerprint


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
