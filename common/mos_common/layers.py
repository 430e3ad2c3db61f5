"""Which layers a concept may change: one list, in one order, addressed by name.

Names are the same whatever the installed library calls its modules: `text_encoder.text_model.<module>` and `unet.<module>`.
The order is that of fusion: text encoder, then keys and values of cross-attention, then the rest of the UNet.

Tuning changes the attention's linears (`concept_layers`); an imported concept may change any linear or 1x1 convolution
(`adaptable_layers`), such as feed-forwards and projections.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from jaxtyping import Float
from torch import Tensor, nn

from mos_common.base_model import Base
from mos_common.fingerprint import text_module_name


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
    module: nn.Linear | nn.Conv2d
    group: Group
    reads: str

    @property
    def d_in(self) -> int:
        """Width of the rows it reads."""
        return self.module.weight.shape[1]

    @property
    def d_out(self) -> int:
        """Width of the rows it writes."""
        return self.module.weight.shape[0]

    def rows(self, batch: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch rows d_in"]:
        """An input of this layer as rows: a 1x1 convolution reads one row a pixel."""
        pixels = batch.flatten(2).transpose(1, 2) if isinstance(self.module, nn.Conv2d) else batch
        return pixels.reshape(pixels.shape[0], -1, self.d_in)


def concept_layers(base: Base) -> list[Layer]:
    """Every linear of every attention module of the text encoder and the UNet, in the order of fusion."""
    return [*_text_layers(base), *_unet_layers(base, Group.CROSS), *_unet_layers(base, Group.SPATIAL)]


def adaptable_layers(base: Base) -> list[Layer]:
    """Every linear and every 1x1 convolution of the text encoder and the UNet, group by group in the order of fusion.

    Within a group the attention's linears come first, as in `concept_layers`.
    """
    attention = concept_layers(base)
    known = {layer.module for layer in attention}
    others = []
    models = [*((part, model, Group.TEXT) for part, model in _text_encoders(base)), ("unet", base.unet, Group.SPATIAL)]
    for part, model, group in models:
        for name, module in model.named_modules():
            if module in known or not (isinstance(module, nn.Linear) or _is_pointwise(module)):
                continue
            full = f"{part}.{text_module_name(name) if group is Group.TEXT else name}"
            others.append(Layer(full, module, group, f"{full}.input"))  # type: ignore[arg-type]
    return [layer for group in Group for layer in [*attention, *others] if layer.group is group]


def cross_attentions(base: Base) -> list[tuple[str, nn.Module]]:
    """The cross-attention modules in execution order (down, mid, up), by their name within the UNet.

    Modules are registered down, up, mid; so the order of `named_modules()` is not the order of execution.
    """
    found = [(n, m) for n, m in base.unet.named_modules() if n.endswith(".attn2")]
    stages = ("down_blocks.", "mid_block.", "up_blocks.")
    return [(n, m) for stage in stages for n, m in found if n.startswith(stage)]


def word_layer_numbers(base: Base) -> list[int]:
    """For every cross-attention module, in execution order, which of a word's embeddings it reads.

    One embedding for each transformer of the UNet, which in Stable Diffusion 1.x has one cross-attention (so 16 embeddings, as in
    the paper). XL's transformers have up to ten, which share one: 11 embeddings, not 70.
    """
    transformers = [name.partition(".transformer_blocks.")[0] for name, _ in cross_attentions(base)]
    numbers = {name: k for k, name in enumerate(dict.fromkeys(transformers))}
    return [numbers[name] for name in transformers]


def word_layers(base: Base) -> int:
    """How many embeddings a layer-wise word has."""
    return max(word_layer_numbers(base)) + 1


def _text_encoders(base: Base) -> list[tuple[str, nn.Module]]:
    return list(zip(("text_encoder", "text_encoder_2"), base.text_encoders, strict=False))


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _text_layers(base: Base) -> list[Layer]:
    layers = []
    modules = [(part, *found) for part, encoder in _text_encoders(base) for found in encoder.named_modules()]
    for encoder, name, module in modules:
        if name.endswith(".self_attn"):
            full = f"{encoder}.{text_module_name(name)}"
            for part in ("q_proj", "k_proj", "v_proj"):
                layers.append(Layer(f"{full}.{part}", getattr(module, part), Group.TEXT, f"{full}.input"))
            layers.append(Layer(f"{full}.out_proj", module.out_proj, Group.TEXT, f"{full}.out_proj.input"))  # type: ignore[arg-type]
    return layers


def _unet_layers(base: Base, group: Group) -> list[Layer]:
    layers = []
    numbers = word_layer_numbers(base)
    read_first: dict[int, str] = {}
    for number, (cross_name, cross) in zip(numbers, cross_attentions(base), strict=True):
        full = f"unet.{cross_name}"
        if group is Group.CROSS:
            reads = f"{read_first.setdefault(number, full)}.text"
            layers += [Layer(f"{full}.{part}", getattr(cross, part), group, reads) for part in ("to_k", "to_v")]
            continue
        self_name = f"{full.removesuffix('attn2')}attn1"
        attention = base.unet.get_submodule(self_name.removeprefix("unet."))
        for part in ("to_q", "to_k", "to_v"):
            layers.append(Layer(f"{self_name}.{part}", getattr(attention, part), group, f"{self_name}.input"))
        layers.append(Layer(f"{self_name}.to_out.0", attention.to_out[0], group, f"{self_name}.to_out.0.input"))  # type: ignore[index, arg-type]
        layers.append(Layer(f"{full}.to_q", cross.to_q, group, f"{full}.to_q.input"))  # type: ignore[arg-type]
        layers.append(Layer(f"{full}.to_out.0", cross.to_out[0], group, f"{full}.to_out.0.input"))  # type: ignore[index, arg-type]
    return layers
