"""Stability's names for the weights of the UNet and the VAE in a single file.

UNet      down_blocks.0.resnets.0.conv1 -> input_blocks.1.0.in_layers.2
VAE       decoder.up_blocks.0.resnets.0.conv1 -> decoder.up.3.block.0.conv1
          (up counts from the picture)
"""

from __future__ import annotations

from collections.abc import Mapping

UNET_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
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


def unet_name(name: str, blocks: Mapping[str, str]) -> str:
    """Rename `down_blocks.0.resnets.0.conv1.weight` to `input_blocks.1.0.in_layers.2.weight`.

    `blocks` are Stability's numbers of our blocks (`spellings.stability_blocks`). Unknown names are
    returned unchanged.
    """
    module, _, kind = name.rpartition(".")
    if module in UNET_OUTSIDE:
        return f"{UNET_OUTSIDE[module]}.{kind}"
    of_block = module.split(".")[: 3 if module.startswith("mid_block.") else 4]
    block, within = ".".join(of_block), ".".join(module.split(".")[len(of_block) :])
    if block not in blocks:
        return name
    renamed = UNET_WITHIN.get(of_block[-2], {}).get(within, within)
    return f"{blocks[block]}.{renamed}.{kind}"


def vae_name(name: str, levels: int) -> str:
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
