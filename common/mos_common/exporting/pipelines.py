"""Pipelines of diffusers made of a base's own parts."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from mos_common.base_model import Base


def pipeline_of(base: Base) -> Any:
    """Return diffusers' own pipeline over the base's modules; nothing is copied."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    parts = {"vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer, "unet": base.unet}
    parts |= {"scheduler": base.scheduler, "feature_extractor": None, "image_encoder": None}
    if base.text_encoder_2 is None:
        return StableDiffusionPipeline(**parts, safety_checker=None, requires_safety_checker=False)
    second = {"text_encoder_2": base.text_encoder_2, "tokenizer_2": base.tokenizer_2}
    return StableDiffusionXLPipeline(
        **parts,
        **second,
        add_watermarker=False,
        force_zeros_for_empty_prompt=base.force_zeros_for_empty_prompt,
    )


def copy_of(base: Base) -> Base:
    """Return a base with modules and tokenizers of its own, for loaders that change them."""
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
    return dataclasses.replace(base, **{part: copy.deepcopy(getattr(base, part)) for part in parts})


def save_configuration(pipeline: Any, folder: Path) -> None:
    """Write a pipeline's folder without its weights, as `from_single_file(config=…)` reads it."""
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if part is not None:
            # Tokenizers have no weights; text encoders are transformers', the rest diffusers'.
            save = getattr(part, "save_config", None) or getattr(part, "config", part).save_pretrained
            save(folder / name)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Let diffusers load without its progress bars within the block."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_words(pipeline: Any, token: str, tensors: Mapping[str, Tensor]) -> None:
    """Load a textual inversion under a concept's own token, into each text encoder."""
    if "clip_g" not in tensors:
        (vectors,) = tensors.values()
        pipeline.load_textual_inversion(vectors, token=token)
        return
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(pipeline, f"text_encoder{number}"), getattr(pipeline, f"tokenizer{number}")
        pipeline.load_textual_inversion(tensors[key], token=token, text_encoder=encoder, tokenizer=tokenizer)
