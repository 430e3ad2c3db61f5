"""Which layers a concept may change: one list, in one order, addressed by name.

Names are the same whatever the installed library calls its modules: `text_encoder.text_model.<module>` and `unet.<module>`.
The order is that of fusion: text encoder, then keys and values of cross-attention, then the rest of the UNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from torch import nn

from mos_common.base_model import BaseModel, text_module_name


class Group(StrEnum):
    """What feeds a layer, and so when it is fused."""

    TEXT = "text encoder"
    CROSS = "cross-attention keys and values"
    SPATIAL = "unet"


@dataclass(frozen=True)
class Layer:
    """One linear layer that a concept may change.

    `reads` names its input: layers that read the same input (q, k, v of one self-attention) share it and so share statistics.
    """

    name: str
    module: nn.Linear
    group: Group
    reads: str

    @property
    def d_in(self) -> int:
        """Width of the rows it reads."""
        return self.module.in_features

    @property
    def d_out(self) -> int:
        """Width of the rows it writes."""
        return self.module.out_features


def concept_layers(base: BaseModel) -> list[Layer]:
    """Every linear of every attention module of the text encoder and the UNet, in the order of fusion."""
    return [*_text_layers(base), *_unet_layers(base, Group.CROSS), *_unet_layers(base, Group.SPATIAL)]


def cross_attentions(base: BaseModel) -> list[tuple[str, nn.Module]]:
    """The cross-attention modules in execution order (down, mid, up), by their name within the UNet.

    Modules are registered down, up, mid; so the order of `named_modules()` is not the order of execution.
    """
    found = [(n, m) for n, m in base.unet.named_modules() if n.endswith(".attn2")]
    stages = ("down_blocks.", "mid_block.", "up_blocks.")
    return [(n, m) for stage in stages for n, m in found if n.startswith(stage)]


def _text_layers(base: BaseModel) -> list[Layer]:
    layers = []
    for name, module in base.text_encoder.named_modules():
        if name.endswith(".self_attn"):
            full = f"text_encoder.{text_module_name(name)}"
            for part in ("q_proj", "k_proj", "v_proj"):
                layers.append(Layer(f"{full}.{part}", getattr(module, part), Group.TEXT, f"{full}.input"))
            layers.append(Layer(f"{full}.out_proj", module.out_proj, Group.TEXT, f"{full}.out_proj.input"))  # type: ignore[arg-type]
    return layers


def _unet_layers(base: BaseModel, group: Group) -> list[Layer]:
    layers = []
    for cross_name, cross in cross_attentions(base):
        full = f"unet.{cross_name}"
        if group is Group.CROSS:
            layers += [
                Layer(f"{full}.{part}", getattr(cross, part), group, f"{full}.text") for part in ("to_k", "to_v")
            ]
            continue
        self_name = f"{full.removesuffix('attn2')}attn1"
        attention = base.unet.get_submodule(self_name.removeprefix("unet."))
        for part in ("to_q", "to_k", "to_v"):
            layers.append(Layer(f"{self_name}.{part}", getattr(attention, part), group, f"{self_name}.input"))
        layers.append(Layer(f"{self_name}.to_out.0", attention.to_out[0], group, f"{self_name}.to_out.0.input"))  # type: ignore[index, arg-type]
        layers.append(Layer(f"{full}.to_q", cross.to_q, group, f"{full}.to_q.input"))  # type: ignore[arg-type]
        layers.append(Layer(f"{full}.to_out.0", cross.to_out[0], group, f"{full}.to_out.0.input"))  # type: ignore[index, arg-type]
    return layers
