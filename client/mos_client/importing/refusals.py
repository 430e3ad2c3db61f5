"""Name the kind of a tensor that cannot be imported, for the refusal."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mos_common.base_model import Base

# Part of a tensor's name, and what it belongs to; the first that is found counts.
OTHER_KINDS = {
    "boft_": "BOFT",
    "oft_": "OFT",
    "ia3_": "IA3",
    ".on_input": "IA3",
    "vera_lambda": "VeRA",
    "hra_u": "HRA",
    "lora_E": "AdaLoRA",
    "lora_embedding_": "a LoRA of an embedding table",
    "modules_to_save": "a layer that was trained whole (modules_to_save)",
    "w_norm": "a trained norm",
    "b_norm": "a trained norm",
    "diff_b": "a trained bias",
    ".bias": "a trained bias",
    ".a1.weight": "GLoRA",
    ".a2.weight": "GLoRA",
    ".b1.weight": "GLoRA",
    ".b2.weight": "GLoRA",
    ".bm.weight": "GLoRA",
    "reshape_weight": "a LoRA that changes the shape of a layer",
    "set_weight": "a weight that replaces the base's",
    "lllite_": "a ControlNet-LLLite",
    "motion_module": "a motion module of AnimateDiff",
    "lokr_": "a LoKr in an unknown form",
    "hada_": "a LoHa in an unknown form",
}
EXPECTED = "expected LoRA, LoCon, DoRA, LoHa, LoKr or whole differences (.diff) of linear layers and 1x1 convolutions"


def kind_of(name: str) -> str:
    """Return what a tensor is that belongs to no known kind of adapter, and what was expected."""
    kind = next((kind for part, kind in OTHER_KINDS.items() if part in name), "not a factor of an adapter")
    return f"{kind}, which cannot be imported: {EXPECTED}"


def unknown_layer(spelled: str, name: str, tensors: Mapping[str, Tensor], base: Base) -> str:
    """Return the message for a tensor of a layer that the base does not have."""
    of_layer = [tensor for other, tensor in tensors.items() if other.startswith(f"{spelled}.")]
    if name.endswith(".diff") and tensors[name].ndim == 1:
        return f"{name} is a trained norm or bias, which cannot be imported: {EXPECTED}"
    if any(tensor.ndim == 4 and tuple(tensor.shape[2:]) != (1, 1) for tensor in of_layer):
        return f"{name} changes a convolution larger than 1x1, of another base: use the one it was made for (--base)"
    return (
        f"{name} changes {spelled}, which is not a linear layer or 1x1 convolution of {base.name}: "
        f"import it with the base it was made for{_made_for(tensors)} (--base)"
    )


def _made_for(tensors: Mapping[str, Tensor]) -> str:
    """Return what the file was made for, as far as its names tell."""
    signs = {
        "double_blocks": "Flux",
        "single_transformer_blocks": "Flux",
        "joint_blocks": "Stable Diffusion 3",
        "lora_te3": "Stable Diffusion 3 or Flux",
        "lora_te2": "Stable Diffusion XL",
        "text_encoder_2.": "Stable Diffusion XL",
        "clip_g": "Stable Diffusion XL",
        "label_emb": "Stable Diffusion XL",
        "transformer_blocks_9": "Stable Diffusion XL",
        "transformer_blocks.9": "Stable Diffusion XL",
        "transformer.": "a diffusion transformer",
        "motion_modules": "AnimateDiff",
    }
    found = next((kind for sign, kind in signs.items() if any(sign in name for name in tensors)), "")
    return f", {found}" if found else ""
