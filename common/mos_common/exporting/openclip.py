"""OpenCLIP's names for the weights of a text encoder, as in single files of 2.x and XL.

ours       text_model.encoder.layers.0.self_attn.{q,k,v}_proj.weight, each (width, width)
OpenCLIP   transformer.resblocks.0.attn.in_proj_weight, (3 · width, width): q, k, v on each other
ours       text_model.text_projection.weight, applied as x Wᵀ
OpenCLIP   text_projection, applied as x P, so P = Wᵀ
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
WITHIN = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
LAYERS = "text_model.encoder.layers."
PROJECTION = "text_model.text_projection.weight"


def openclip_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a text encoder (names: `text_model.…`) as OpenCLIP has them."""
    tensors = {}
    for name, tensor in weights.items():
        if name in OUTSIDE:
            tensors[OUTSIDE[name]] = tensor
        elif name == PROJECTION:
            tensors["text_projection"] = tensor.T
        elif name.startswith(LAYERS):
            number, _, within = name.removeprefix(LAYERS).partition(".")
            module, _, kind = within.rpartition(".")
            if module in WITHIN:
                tensors[f"transformer.resblocks.{number}.{WITHIN[module]}.{kind}"] = tensor
            elif module == "self_attn.q_proj":
                attention = f"{LAYERS}{number}.self_attn"
                parts = [weights[f"{attention}.{part}_proj.{kind}"] for part in "qkv"]
                tensors[f"transformer.resblocks.{number}.attn.in_proj_{kind}"] = torch.cat(parts)
    return tensors
