"""Name the kind of a file that holds neither an adapter nor an embedding."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sign:
    """Regular expressions of tensors' names that, all found, are only in one kind of file."""

    kind: str
    names: tuple[str, ...]


BASE = "is a whole checkpoint of {}, not a LoRA: it is a base model (--base), or extract a LoRA from it first"
PART = "is {} of a diffusion model, not a LoRA"
# The first whose names are all found counts, so the particular stand before the general.
SIGNS = (
    Sign(BASE.format("Stable Diffusion XL"), (r"model\.diffusion_model\.", r"conditioner\.embedders\.")),
    Sign(BASE.format("Flux"), (r"(model\.diffusion_model\.)?double_blocks\.\d+\.(?!.*lora)", r"single_blocks\.")),
    Sign(BASE.format("Stable Diffusion 3"), (r"(model\.diffusion_model\.)?joint_blocks\.\d+\.(?!.*lora)",)),
    Sign(BASE.format("Stable Diffusion 2.x"), (r"model\.diffusion_model\.", r"cond_stage_model\.model\.")),
    Sign(BASE.format("Stable Diffusion 1.x"), (r"model\.diffusion_model\.", r"cond_stage_model\.transformer\.")),
    Sign("is a ControlNet, not a LoRA", (r"(control_model\.|.*(input_hint_block|controlnet_cond_embedding))",)),
    Sign("is a ControlNet (a Control-LoRA), not a LoRA", (r"lora_controlnet",)),
    Sign("is a ControlNet-LLLite, not a LoRA", (r"lllite_",)),
    Sign(BASE.format("a diffusion model"), (r"(model\.)?diffusion_model\.(?!.*(lora|hada|lokr|diff$|alpha$|dora))",)),
    Sign("is an IP-Adapter, not a LoRA", (r"(image_proj|ip_adapter)(\.|$)",)),
    Sign("is a T2I-Adapter, not a LoRA", (r"(adapter\.)?(body\.\d+\.(in_conv|block1|resnets)|body\.0\.)",)),
    Sign("is a motion module of AnimateDiff, not a LoRA", (r".*motion_modules?\.",)),
    Sign("is an upscaler, not a LoRA", (r"(params(_ema)?\.)?(conv_first|model\.0|model\.1\.sub\.0)\.",)),
    Sign(PART.format("the VAE"), (r"(first_stage_model\.)?(encoder|decoder)\.(conv_in|down|up|mid)",)),
    Sign(
        PART.format("the UNet"),
        (r"(unet\.)?conv_in\.weight", r"(unet\.)?(down_blocks|mid_block)\..*(?<!_lora)\.weight"),
    ),
    Sign(PART.format("a text encoder (T5)"), (r"(shared\.weight|encoder\.block\.0\.layer\.0\.SelfAttention)",)),
    Sign(PART.format("an image encoder"), (r"(vision_model|visual)\.",)),
    Sign(PART.format("a text encoder"), (r"(.*\.)?(text_model\.)?embeddings\.(token|position)_embedding\.weight",)),
    Sign(PART.format("a text encoder (OpenCLIP)"), (r"transformer\.resblocks\.",)),
    Sign(PART.format("a transformer"), (r"(transformer\.)?transformer_blocks\.\d+\.(?!.*(lora|hada|lokr))",)),
    Sign(
        "is a LoRA of cloneofsimo/lora, whose tensors do not name their layers: convert it first",
        (r"unet:\d+:(up|down)",),
    ),
)


def kind_of_tensors(names: Collection[str], metadata: Mapping[str, str]) -> str | None:
    """Return what a file of tensors is, as the end of a sentence; None if it may be an adapter."""
    if "mos" in metadata:
        return "is a concept already: no import is needed, give it to `mos-client draw` or to a round as it is"
    for sign in SIGNS:
        patterns = [re.compile(pattern) for pattern in sign.names]
        if all(any(pattern.match(name) for name in names) for pattern in patterns):
            return sign.kind
    return None
