"""A model's weights as its authors' code names them: a writer of single-file checkpoints for tests.

Names are counted block by block, as the constructors of CompVis' UNetModel and Encoder do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
ATTENTION = {"group_norm.": "norm.", "to_q.": "q.", "to_k.": "k.", "to_v.": "v.", "to_out.0.": "proj_out."}
OPEN_CLIP = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.out_proj.": "attn.out_proj.",
}


def checkpoint_of(parts: Mapping[str, nn.Module], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Name the weights of UNet, VAE and text encoders as Stable Diffusion 1.x, 2.x or XL does."""
    two, linear = "text_encoder_2" in parts, parts["unet"].config.use_linear_projection
    named = {f"model.diffusion_model.{k}": v for k, v in _unet(parts["unet"]).items()}
    named |= {f"first_stage_model.{k}": v for k, v in _vae(parts["vae"]).items()}
    if two:
        named |= _clip(parts["text_encoder"], "conditioner.embedders.0.transformer.")
        named |= _open_clip(parts["text_encoder_2"], "conditioner.embedders.1.model.")
    elif linear:
        named |= _open_clip(parts["text_encoder"], "cond_stage_model.model.")
    else:
        named |= _clip(parts["text_encoder"], "cond_stage_model.transformer.")
    return {name: tensor.detach().to(dtype).contiguous().clone() for name, tensor in named.items()}


def _unet(unet: nn.Module) -> dict[str, Tensor]:
    config, places, i = unet.config, {}, 1
    levels = len(config.block_out_channels)
    for level in range(levels):
        for layer in range(config.layers_per_block):
            places[f"down_blocks.{level}.resnets.{layer}."] = f"input_blocks.{i}.0."
            places[f"down_blocks.{level}.attentions.{layer}."] = f"input_blocks.{i}.1."
            i += 1
        if level < levels - 1:
            places[f"down_blocks.{level}.downsamplers.0.conv."] = f"input_blocks.{i}.0.op."
            i += 1
    places |= {"mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1."}
    places |= {"mid_block.resnets.1.": "middle_block.2."}
    i = 0
    for level, kind in enumerate(config.up_block_types):
        for layer in range(config.layers_per_block + 1):
            places[f"up_blocks.{level}.resnets.{layer}."] = f"output_blocks.{i}.0."
            places[f"up_blocks.{level}.attentions.{layer}."] = f"output_blocks.{i}.1."
            if layer == config.layers_per_block and level < levels - 1:
                after = 2 if kind.startswith("CrossAttn") else 1
                places[f"up_blocks.{level}.upsamplers.0.conv."] = f"output_blocks.{i}.{after}.conv."
            i += 1
    places |= {"time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2."}
    places |= {"add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2."}
    places |= {"conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2."}
    return {_renamed(name, places, "resnets", RESNET): tensor for name, tensor in unet.state_dict().items()}


def _vae(vae: nn.Module) -> dict[str, Tensor]:
    levels, places = len(vae.config.block_out_channels), {}
    for level in range(levels):
        for layer in range(vae.config.layers_per_block + 1):
            places[f"encoder.down_blocks.{level}.resnets.{layer}."] = f"encoder.down.{level}.block.{layer}."
            places[f"decoder.up_blocks.{level}.resnets.{layer}."] = f"decoder.up.{levels - 1 - level}.block.{layer}."
        places[f"encoder.down_blocks.{level}.downsamplers.0."] = f"encoder.down.{level}.downsample."
        places[f"decoder.up_blocks.{level}.upsamplers.0."] = f"decoder.up.{levels - 1 - level}.upsample."
    for side in ("encoder", "decoder"):
        places |= {f"{side}.mid_block.resnets.{i}.": f"{side}.mid.block_{i + 1}." for i in (0, 1)}
        places |= {
            f"{side}.mid_block.attentions.0.": f"{side}.mid.attn_1.",
            f"{side}.conv_norm_out.": f"{side}.norm_out.",
        }
    named = {}
    for name, tensor in vae.state_dict().items():
        new = _renamed(name, places, "resnets", {"conv_shortcut.": "nin_shortcut."})
        if ".attentions." in name:
            new = _renamed(name, places, "attentions", ATTENTION)
        convolution = ".attentions." in name and tensor.ndim == 2
        named[new] = tensor[:, :, None, None] if convolution else tensor
    return named


def _clip(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    named = {f"{prefix}text_model.{k.removeprefix('text_model.')}": v for k, v in encoder.state_dict().items()}
    positions = encoder.config.max_position_embeddings
    return named | {f"{prefix}text_model.embeddings.position_ids": torch.arange(positions)[None]}


def _open_clip(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    state = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    named = {
        "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        "ln_final.weight": state.pop("final_layer_norm.weight"),
        "ln_final.bias": state.pop("final_layer_norm.bias"),
    }
    if "text_projection.weight" in state:
        named["text_projection"] = state.pop("text_projection.weight").T
    for layer in range(encoder.config.num_hidden_layers):
        here, there = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            stacked = [state.pop(f"{here}self_attn.{p}_proj.{kind}") for p in "qkv"]
            named[f"{there}attn.in_proj_{kind}"] = torch.cat(stacked)
            for ours, theirs in OPEN_CLIP.items():
                named[f"{there}{theirs}{kind}"] = state.pop(f"{here}{ours}{kind}")
    assert not state, f"no name for {sorted(state)[:3]}"
    return {f"{prefix}{name}": tensor for name, tensor in named.items()}


def _renamed(name: str, places: Mapping[str, str], within: str, inner: Mapping[str, str]) -> str:
    place = next((old for old in places if name.startswith(old)), None)
    if place is None:
        return name
    rest = name.removeprefix(place)
    if f".{within}." in place:
        rest = next((new + rest.removeprefix(old) for old, new in inner.items() if rest.startswith(old)), rest)
    return places[place] + rest
