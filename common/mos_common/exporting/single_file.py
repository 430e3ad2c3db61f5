"""A whole checkpoint as one file, in the layouts of Stable Diffusion 1.x, 2.x and XL.

UNet           model.diffusion_model.…     Stability's names (`stability_names.py`)
VAE            first_stage_model.…         ditto
text encoder   1.x   cond_stage_model.transformer.text_model.…    our names
               2.x   cond_stage_model.model.…                     OpenCLIP's (`openclip.py`)
               XL    conditioner.embedders.0.transformer.text_model.…  our names
                     conditioner.embedders.1.model.…                   OpenCLIP's
XL that predicts v                         v_pred; ztsnr as well if its noise ends with no signal
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mos_common.errors import RequestError
from mos_common.exporting.metadata import Family, family_of
from mos_common.exporting.openclip import openclip_tensors
from mos_common.exporting.stability_names import unet_name, vae_name
from mos_common.fingerprint import text_module_name
from mos_common.spellings import stability_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mos_common.base_model import Base


def check_single_file(base: Base) -> None:
    """Check that a base can be written in one of these layouts.

    Raises:
        RequestError: it has parts that none of them has a name for.

    """
    blocks = dict(stability_blocks(base))
    nameless = [name for name in base.unet.state_dict() if unet_name(name, blocks) == name]
    encoders = [(base.text_encoder, "gelu" if family_of(base).is_2 else "quick_gelu")]
    if base.text_encoder_2 is not None:
        encoders.append((base.text_encoder_2, "gelu"))
    strange = [
        f"a text encoder with {encoder.config.hidden_act}, not {expected}"
        for encoder, expected in encoders
        if encoder.config.hidden_act != expected
    ]
    sizes = base.unet.config.addition_embed_type == "text_time"
    if sizes != (base.text_encoder_2 is not None):
        strange.append("an embedding of sizes without a second text encoder")
    if nameless or strange:
        raise RequestError(
            f"--format single-file writes Stable Diffusion 1.x, 2.x and XL, and {base.name} has another layout "
            f"({(nameless + strange)[0]}): choose --format diffusers or lora"
        )


def checkpoint_tensors(base: Base, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return every current weight of the base under its name in the single file."""
    blocks, levels = dict(stability_blocks(base)), len(base.vae.config.block_out_channels)
    tensors = {
        f"model.diffusion_model.{unet_name(name, blocks)}": tensor for name, tensor in base.unet.state_dict().items()
    }
    for name, tensor in base.vae.state_dict().items():
        pointwise = ".attentions." in name and tensor.ndim == 2  # 1x1 convolutions in Stability's code
        tensors[f"first_stage_model.{vae_name(name, levels)}"] = tensor[:, :, None, None] if pointwise else tensor
    tensors |= _of_text_encoders(base)
    return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()} | _of_prediction(base)


def _of_text_encoders(base: Base) -> dict[str, Tensor]:
    family = family_of(base)
    if base.text_encoder_2 is not None:
        first, second = _text_weights(base.text_encoder), openclip_tensors(_text_weights(base.text_encoder_2))
        return _under("conditioner.embedders.0.transformer.", first) | _under("conditioner.embedders.1.model.", second)
    if family.is_2:
        return _under("cond_stage_model.model.", openclip_tensors(_text_weights(base.text_encoder)))
    return _under("cond_stage_model.transformer.", _text_weights(base.text_encoder))


def _of_prediction(base: Base) -> dict[str, Tensor]:
    """Return the empty tensors by which ComfyUI and Forge know an XL model that predicts v."""
    config = base.scheduler.config
    if family_of(base) is not Family.XL or config.prediction_type != "v_prediction":
        return {}
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    return {name: torch.tensor([]) for name in (["v_pred", "ztsnr"] if zero_snr else ["v_pred"])}


def _text_weights(encoder: nn.Module) -> dict[str, Tensor]:
    return {text_module_name(name): tensor for name, tensor in encoder.state_dict().items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
