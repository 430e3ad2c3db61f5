"""Name the kind of a file of weights: a checkpoint that can be opened, or anything else.

Told by the names and shapes of its tensors, the way other tools tell it, so a renamed file is
recognised. Checkpoints are Stable Diffusion 1.x, 2.x and XL in their authors' layout:

    model.diffusion_model.…     the UNet, with 4 input channels
    first_stage_model.…         the VAE
    cond_stage_model.…          the text encoder: CLIP in 1.x, OpenCLIP in 2.x
    conditioner.embedders.…     XL's two
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from enum import Enum

import torch

from mos_common.errors import BaseModelError

UNET = "model.diffusion_model."
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
VAES = ("first_stage_model.", "vae.")
CLIP = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
LATENT_CHANNELS = 4


class Kind(Enum):
    """A kind of checkpoint that we open; its value is the name that people know it by."""

    ONE = "Stable Diffusion 1.x"
    TWO = "Stable Diffusion 2.x"
    XL = "Stable Diffusion XL"


TEXT_ENCODERS = {Kind.ONE: (CLIP[0],), Kind.TWO: (OPEN_CLIP[0],), Kind.XL: (CLIP[1], OPEN_CLIP[1])}

IMPORT = "mos-client import makes a concept of it; --base is the model that it was made for"
FOLDER = "give the folder that has model_index.json"
NOT_A_CHECKPOINT = (
    (r"lora_(up|down|A|B)\b|\.lora\.(up|down)\.", "a LoRA", IMPORT),
    (r"\.(hada_w\d|lokr_w\d|oft_blocks|oft_diag|dora_scale|diff|diff_b)(_[ab])?$", "a LyCORIS file", IMPORT),
    (r"^(emb_params|string_to_param|string_to_token|clip_[lg])\b", "a textual inversion (an embedding)", IMPORT),
    (r"^control_model\.|input_hint_block|controlnet_cond_embedding|zero_convs", "a ControlNet", ""),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter", ""),
    (r"motion_modules?\.", "an AnimateDiff motion module", ""),
    (r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|mid|down|up)", "a VAE alone", ""),
    (r"^(down_blocks|up_blocks)\.\d+\.attentions\.", "the UNet of a diffusers folder alone", FOLDER),
    (r"^encoder\.block\.\d+\.layer\.", "a T5 text encoder", ""),
    (r"^(text_model\.|transformer\.)?encoder\.layers\.|resblocks\.", "a text encoder alone", FOLDER),
    (r"^(model\.1\.sub\.|body\.\d+\.rdb|RRDB)", "an upscaler of pictures", ""),
)
BY_CHANNELS = {
    9: "an inpainting model",
    8: "an instruct-pix2pix model",
    7: "an upscaler (x4)",
    5: "a depth-to-image model",
}
BY_NAME = (
    (r"^control_model\.", "a checkpoint with a ControlNet in it"),
    (r"^edm_mean$", "Playground 2.5, which denoises by another formula (EDM)"),
    (r"^edm_vpred\.", "a CosXL model, which denoises by another formula (EDM)"),
    (r"^conditioner\.embedders\.0\.model\.", "an SDXL refiner"),
    (r"\.time_(stack|mixer)\b", "Stable Video Diffusion"),
    (r"^(noise_augmentor|embedder)\.", "Stable unCLIP"),
)
USE = "a base model is a checkpoint of Stable Diffusion 1.x, 2.x or XL with UNet, VAE and text encoder"


def kind_of(name: str, shapes: Mapping[str, tuple[int, ...]], metadata: Collection[str] = ()) -> Kind:
    """Return which kind of checkpoint has tensors of these names and shapes.

    Raises:
        BaseModelError: it is something else, which the message names, or lacks a part.

    """
    if FIRST_LAYER not in shapes:
        what, advice = _something_else(shapes, metadata)
        raise BaseModelError(f"{name} is {what}, not a base model: {advice or USE}")
    for pattern, what in BY_NAME:
        if _any(pattern, shapes):
            raise BaseModelError(f"{name} is {what}: {USE}")
    channels = shapes[FIRST_LAYER][1]
    if channels != LATENT_CHANNELS:
        what = BY_CHANNELS.get(channels, "a model of another kind")
        raise BaseModelError(
            f"{name} is {what}: its UNet reads {channels} channels, and we draw from text alone. {USE}"
        )
    missing = [] if any(key.startswith(VAES) for key in shapes) else ["VAE (first_stage_model.…)"]
    kind = next((kind for kind, encoders in TEXT_ENCODERS.items() if _has(shapes, encoders[-1])), None)
    if kind is None:
        missing.append("text encoder (cond_stage_model.… or conditioner.embedders.…)")
    elif not _has(shapes, TEXT_ENCODERS[kind][0]):
        missing.append(f"first text encoder ({TEXT_ENCODERS[kind][0]}…)")
    if kind is None or missing:
        raise BaseModelError(
            f"{name} has a UNet and no {', no '.join(missing)}: give a checkpoint with everything in it, "
            "or the model as a diffusers folder"
        )
    return kind


def _something_else(shapes: Mapping[str, tuple[int, ...]], metadata: Collection[str]) -> tuple[str, str]:
    if "mos" in metadata:
        return "a concept file", "give the model that it was tuned on"
    for pattern, what, advice in NOT_A_CHECKPOINT:
        if _any(pattern, shapes):
            return what, advice
    return _known_to_diffusers(shapes), ""


def _known_to_diffusers(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name another model by diffusers' own table of checkpoints, such as "flux-dev"."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    try:
        found = infer_diffusers_model_type({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    except (KeyError, IndexError, ValueError, RuntimeError):
        found = "v1"
    # "v1" is also its answer to what it does not know.
    return "a file without a UNet that we know" if found == "v1" else f"a model of another kind ({found})"


def _has(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in shapes)


def _any(pattern: str, names: Collection[str]) -> bool:
    searched = re.compile(pattern)
    return any(searched.search(name) for name in names)
