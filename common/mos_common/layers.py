"""The layers that a concept may change: one list, in one order, addressed by name.

Names are the same whatever the installed library calls its modules:
`text_encoder.text_model.<module>` and `unet.<module>`. The order is that of fusion: text encoder,
then keys and values of cross-attention, then the rest of the UNet.

Tuning changes the linears of the attention modules (`Layout.attention`); an imported concept may
change any linear or 1x1 convolution (`Layout.layers`), such as feed-forwards and projections.

A walk over all modules of a UNet takes longer than a lookup, so a base is walked once: ask
`base.layout`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn

from mos_common.fingerprint import text_module_name

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


class Group(StrEnum):
    """The source of a layer's input, which decides when the layer is fused."""

    TEXT = "text encoder"
    CROSS = "cross-attention keys and values"
    SPATIAL = "unet"


@dataclass(frozen=True)
class Layer:
    """One linear layer that a concept may change.

    `reads` names its input: layers that read the same input (q, k, v of one self-attention) share
    it and so share statistics.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    group: Group
    reads: str

    @property
    def d_in(self) -> int:
        """The width of its input rows."""
        return self.module.weight.shape[1]

    @property
    def d_out(self) -> int:
        """The width of its output rows."""
        return self.module.weight.shape[0]

    def rows(self, batch: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch rows d_in"]:
        """Return an input of this layer as rows; a 1x1 convolution reads one row per pixel."""
        pixels = batch.flatten(2).transpose(1, 2) if isinstance(self.module, nn.Conv2d) else batch
        return pixels.reshape(pixels.shape[0], -1, self.d_in)


@dataclass(frozen=True)
class CrossAttention:
    """One cross-attention module of the UNet, by its name within it.

    `word_layer` is the number of the embedding of every word that it reads. There is one embedding
    for each transformer of the UNet, which in Stable Diffusion 1.x has one cross-attention (so 16
    embeddings, as in the paper). XL's transformers have up to ten, which share one: 11 embeddings,
    not 70.
    """

    name: str
    module: Attention
    word_layer: int


@dataclass(frozen=True)
class Layout:
    """The parts of a base that concepts refer to: its layers and its cross-attentions.

    `layers` are every linear and every 1x1 convolution of the text encoders and the UNet, group by
    group in the order of fusion; within a group the linears of the attention modules come first.
    `attention` are those alone.
    """

    layers: tuple[Layer, ...]
    attention: tuple[Layer, ...]
    cross_attentions: tuple[CrossAttention, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """Every layer under its name."""
        return MappingProxyType({layer.name: layer for layer in self.layers})

    @cached_property
    def by_group(self) -> Mapping[Group, tuple[Layer, ...]]:
        """The layers of each group, in the order of fusion."""
        return MappingProxyType({g: tuple(layer for layer in self.layers if layer.group is g) for g in Group})

    @cached_property
    def word_layers(self) -> int:
        """The number of embeddings of a layer-wise word."""
        return max(cross.word_layer for cross in self.cross_attentions) + 1


def layout_of(text_encoders: Sequence[nn.Module], unet: UNet2DConditionModel) -> Layout:
    """Return the layout of a base, by a walk over its modules; `base.layout` caches it."""
    encoders = list(zip(("text_encoder", "text_encoder_2"), text_encoders, strict=False))
    crosses = _cross_attentions(unet)
    attention = [*_text_layers(encoders), *_cross_layers(crosses), *_spatial_layers(unet, crosses)]
    others = list(_other_layers(encoders, unet, {layer.module for layer in attention}))
    ordered = [layer for group in Group for layer in [*attention, *others] if layer.group is group]
    return Layout(tuple(ordered), tuple(attention), tuple(crosses))


def _cross_attentions(unet: UNet2DConditionModel) -> list[CrossAttention]:
    # Modules are registered down, up, mid, and run down, mid, up.
    stages = ("down_blocks.", "mid_block.", "up_blocks.")
    named = [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
    ordered = [(name, module) for stage in stages for name, module in named if name.startswith(stage)]
    transformers = [name.partition(".transformer_blocks.")[0] for name, _ in ordered]
    numbers = {transformer: k for k, transformer in enumerate(dict.fromkeys(transformers))}
    return [
        CrossAttention(name, module, numbers[transformer])
        for (name, module), transformer in zip(ordered, transformers, strict=True)
    ]


def _text_layers(encoders: Sequence[tuple[str, nn.Module]]) -> Iterator[Layer]:
    modules: list[tuple[str, str, Any]] = [
        (part, *named) for part, model in encoders for named in model.named_modules()
    ]
    for encoder, name, attention in modules:
        if not name.endswith(".self_attn"):
            continue
        full = f"{encoder}.{text_module_name(name)}"
        for part in ("q_proj", "k_proj", "v_proj"):
            yield Layer(f"{full}.{part}", getattr(attention, part), Group.TEXT, f"{full}.input")
        yield Layer(f"{full}.out_proj", attention.out_proj, Group.TEXT, f"{full}.out_proj.input")


def _cross_layers(crosses: Sequence[CrossAttention]) -> Iterator[Layer]:
    read_first: dict[int, str] = {}
    for cross in crosses:
        full = f"unet.{cross.name}"
        reads = f"{read_first.setdefault(cross.word_layer, full)}.text"
        for part in ("to_k", "to_v"):
            yield Layer(f"{full}.{part}", getattr(cross.module, part), Group.CROSS, reads)


def _spatial_layers(unet: UNet2DConditionModel, crosses: Sequence[CrossAttention]) -> Iterator[Layer]:
    for cross in crosses:
        own = f"{cross.name.removesuffix('attn2')}attn1"
        attention: Attention = unet.get_submodule(own)
        for part in ("to_q", "to_k", "to_v"):
            yield Layer(f"unet.{own}.{part}", getattr(attention, part), Group.SPATIAL, f"unet.{own}.input")
        yield _spatial(f"unet.{own}.to_out.0", attention.to_out[0])
        yield _spatial(f"unet.{cross.name}.to_q", cross.module.to_q)
        yield _spatial(f"unet.{cross.name}.to_out.0", cross.module.to_out[0])


def _spatial(name: str, module: nn.Linear) -> Layer:
    return Layer(name, module, Group.SPATIAL, f"{name}.input")


def _other_layers(
    encoders: Sequence[tuple[str, nn.Module]], unet: UNet2DConditionModel, known: set[nn.Linear | nn.Conv2d]
) -> Iterator[Layer]:
    """Every other linear and 1x1 convolution; each reads an input of its own."""
    models = [*((part, model, Group.TEXT) for part, model in encoders), ("unet", unet, Group.SPATIAL)]
    for part, model, group in models:
        for name, module in model.named_modules():
            pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
            if module in known or not (isinstance(module, nn.Linear) or pointwise):
                continue
            full = f"{part}.{text_module_name(name) if group is Group.TEXT else name}"
            yield Layer(full, module, group, f"{full}.input")
