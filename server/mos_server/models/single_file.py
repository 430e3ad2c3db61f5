"""The single-file layout of Stable Diffusion 1.x: its authors' names for the weights.

UNet      unet.down_blocks.0.resnets.0.conv1
          -> model.diffusion_model.input_blocks.1.0.in_layers.2
VAE       vae.decoder.up_blocks.0.resnets.0.conv1
          -> first_stage_model.decoder.up.3.block.0.conv1    (up counts from the picture)
text encoder
          text_encoder.text_model.…
          -> cond_stage_model.transformer.text_model.…
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mos_common.errors import RequestError
from mos_common.fingerprint import text_module_name
from mos_common.spellings import stability_blocks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mos_common.base_model import Base

UNET_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_WITHIN = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
    "upsamplers": {"conv": "conv"},
}
VAE_WITHIN = {
    "resnets": {"conv_shortcut": "nin_shortcut"},
    "attentions": {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
}


def check_single_file(base: Base) -> None:
    """Check that a base can be written in this layout.

    Raises:
        RequestError: the base is an XL model, or has parts that Stable Diffusion 1.x does not have.

    """
    if base.text_encoder_2 is not None:
        raise RequestError(
            f"--format single-file writes Stable Diffusion 1.x, and {base.name} is an XL model: "
            "choose --format diffusers or lora"
        )
    blocks = dict(stability_blocks(base))
    nameless = [name for name in base.unet.state_dict() if _of_unet(name, blocks) == name]
    if nameless or base.unet.config.use_linear_projection:
        raise RequestError(
            f"--format single-file writes Stable Diffusion 1.x, and {base.name} has another layout: "
            "choose --format diffusers or lora"
        )


def checkpoint_tensors(base: Base, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return every current weight of the base under its name in the single file."""
    weights, names = _weights(base), _names(base)
    tensors = {}
    for ours, theirs in names.items():
        tensor = weights[ours].to(dtype)
        if ours.startswith("vae.") and ".attentions." in ours and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # the VAE's attention was written as 1x1 convolutions
        tensors[theirs] = tensor.contiguous()
    return tensors


def _weights(base: Base) -> dict[str, Tensor]:
    parts = {"unet": base.unet, "vae": base.vae, "text_encoder": base.text_encoder}
    return {f"{part}.{name}": tensor for part, model in parts.items() for name, tensor in model.state_dict().items()}


def _names(base: Base) -> dict[str, str]:
    blocks, levels = dict(stability_blocks(base)), len(base.vae.config.block_out_channels)
    names = {}
    for full in _weights(base):
        part, _, name = full.partition(".")
        if part == "unet":
            names[full] = f"model.diffusion_model.{_of_unet(name, blocks)}"
        elif part == "vae":
            names[full] = f"first_stage_model.{_of_vae(name, levels)}"
        else:
            names[full] = f"cond_stage_model.transformer.{text_module_name(name)}"
    return names


def _of_unet(name: str, blocks: dict[str, str]) -> str:
    """Rename `down_blocks.0.resnets.0.conv1.weight` to `input_blocks.1.0.in_layers.2.weight`.

    Unknown names are returned unchanged.
    """
    module, _, kind = name.rpartition(".")
    if module in UNET_OUTSIDE:
        return f"{UNET_OUTSIDE[module]}.{kind}"
    of_block = module.split(".")[: 3 if module.startswith("mid_block.") else 4]
    block, within = ".".join(of_block), ".".join(module.split(".")[len(of_block) :])
    renamed = UNET_WITHIN.get(of_block[-2], {}).get(within, within)
    return f"{blocks[block]}.{renamed}.{kind}" if block in blocks else name


def _of_vae(name: str, levels: int) -> str:
    """Return the single file's name for a weight of the VAE.

    `decoder.up_blocks.0.resnets.1.conv1.weight` -> `decoder.up.<levels - 1>.block.1.conv1.weight`
    """
    module, _, kind = name.rpartition(".")
    match module.split("."):
        case [side, "down_blocks", level, "resnets", i, *within]:
            place = f"{side}.down.{level}.block.{i}"
        case [side, "up_blocks", level, "resnets", i, *within]:
            place = f"{side}.up.{levels - 1 - int(level)}.block.{i}"
        case [side, "down_blocks", level, "downsamplers", "0", *within]:
            return f"{side}.down.{level}.downsample.{'.'.join(within)}.{kind}"
        case [side, "up_blocks", level, "upsamplers", "0", *within]:
            return f"{side}.up.{levels - 1 - int(level)}.upsample.{'.'.join(within)}.{kind}"
        case [side, "mid_block", "resnets", i, *within]:
            place = f"{side}.mid.block_{int(i) + 1}"
        case [side, "mid_block", "attentions", i, *within]:
            renamed = VAE_WITHIN["attentions"].get(".".join(within), ".".join(within))
            return f"{side}.mid.attn_{int(i) + 1}.{renamed}.{kind}"
        case [side, "conv_norm_out"]:
            return f"{side}.norm_out.{kind}"
        case _:
            return name  # the first and last convolutions, and those around the latents
    renamed = VAE_WITHIN["resnets"].get(".".join(within), ".".join(within))
    return f"{place}.{renamed}.{kind}"
