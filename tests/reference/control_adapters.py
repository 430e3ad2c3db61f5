"""Random adapters of diffusers' own classes, written as diffusers writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image

from mos_common.base_model import Base


def write_t2i(folder: Path, *, xl: bool = False, seed: int = 0, grey: bool = False, **changed: object) -> Path:
    """Write a random T2I-Adapter that fits the random bases of `conftest`."""
    torch.manual_seed(seed)
    levels = (
        {"channels": [16, 16, 32], "adapter_type": "full_adapter_xl", "downscale_factor": 4}
        if xl
        else {"channels": [16, 16, 32, 32], "adapter_type": "full_adapter", "downscale_factor": 2}
    )
    adapter = T2IAdapter(**{"in_channels": 1 if grey else 3, "num_res_blocks": 1, **levels, **changed})
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(2)
    adapter.save_pretrained(folder)
    return folder


def write_controlnet(
    folder: Path, base: Base, *, seed: int = 0, widths: tuple[int, ...] = (), **changed: object
) -> Path:
    """Write a random ControlNet of a base's UNet, whose zero convolutions are not zero."""
    torch.manual_seed(seed)
    # As many halvings as there are pixels to a cell.
    widths = widths or tuple([8] * base.pixels_per_latent.bit_length())
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=widths)
    with torch.no_grad():
        for block in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
            block.weight.normal_(0, 0.5)
    if changed:
        net.register_to_config(**changed)
    net.save_pretrained(folder)
    return folder


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return a picture of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
