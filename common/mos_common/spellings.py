"""Other tools' names for the layers of a base model: one table from their spelling to ours.

ours       unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0
diffusers  the same; or ….attn1.processor.to_out_lora; without `unet.` in a file of PEFT's
kohya      lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0,
           lora_te_text_model_…, lora_te1_…, lora_te2_…
kohya, XL  lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0,
           numbered as in Stability's code
LyCORIS    lycoris_down_blocks_1_attentions_0_…, where its wrapper was used outside kohya's scripts
ComfyUI    diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0,
           text_encoders.clip_l.transformer.text_model.…, clip_l.transformer.text_model.…
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from mos_common.base_model import Base

KOHYA = {"unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
COMFYUI = {"unet": (), "text_encoder": ("clip_l", "clip_h"), "text_encoder_2": ("clip_g",)}
WITHIN_BLOCKS = {
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
}
# Layers outside of all blocks, in Stability's code.
OUTSIDE_BLOCKS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
# Layers outside of all blocks: in a kohya file, diffusers finds them only under these names.
OUTSIDE = {
    "unet.add_embedding.linear_1": "lora_unet_label_emb_0_0",
    "unet.add_embedding.linear_2": "lora_unet_label_emb_0_2",
    "text_encoder_2.text_model.text_projection": "lora_te2_text_projection",
}


def spellings(base: Base) -> dict[str, str]:
    """Map every known spelling of every layer that a concept may change to our name for it.

    Ambiguous spellings are left out, such as PEFT's for text encoders, of which XL has two.
    """
    return _spelled(base, [layer.name for layer in base.layout.layers])


def spellings_of_convolutions(base: Base) -> dict[str, str]:
    """Do the same for the convolutions larger than 1x1, which a concept cannot change."""
    return _spelled(base, large_convolutions(base))


def large_convolutions(base: Base) -> dict[str, nn.Conv2d]:
    """Return the convolutions of the UNet that no concept can change, by name."""
    return {
        f"unet.{name}": module
        for name, module in base.unet.named_modules()
        if isinstance(module, nn.Conv2d) and f"unet.{name}" not in base.layout.by_name
    }


def kohya_name(layer: str, base: Base) -> str:
    """Return kohya's spelling of a layer, with diffusers' block numbers; most tools read it."""
    part, _, module = layer.partition(".")
    prefix = "lora_te1" if part == "text_encoder" and len(base.text_encoders) > 1 else KOHYA[part][0]
    return OUTSIDE.get(layer, f"{prefix}_{module.replace('.', '_')}")


def _spelled(base: Base, names: Iterable[str]) -> dict[str, str]:
    blocks = dict(stability_blocks(base))
    meant: dict[str, set[str]] = {}
    for name in names:
        part, _, module = name.partition(".")
        for spelling in _of_layer(part, module, blocks):
            meant.setdefault(spelling, set()).add(name)
    return {spelling: layers.pop() for spelling, layers in meant.items() if len(layers) == 1}


def _of_layer(part: str, module: str, blocks: Mapping[str, str]) -> Iterator[str]:
    yield f"{part}.{module}"
    yield f"base_model.model.{module}"
    if part == "unet":
        yield module
    else:  # newer transformers dropped that prefix
        yield f"{part}.{module.removeprefix('text_model.')}"
        yield f"base_model.model.{module.removeprefix('text_model.')}"
    attention, _, linear = module.removesuffix(".0").rpartition(".")
    if attention.endswith(("attn1", "attn2")):
        yield f"{part}.{attention}.processor.{linear}_lora"
        yield f"{attention}.processor.{linear}_lora"
    if outside := OUTSIDE.get(f"{part}.{module}"):
        yield outside
    for name in dict.fromkeys((module, module.removeprefix("text_model."))):
        for prefix in (*KOHYA[part], "lycoris"):
            yield f"{prefix}_{name.replace('.', '_')}"
        for prefix in COMFYUI[part]:
            yield f"text_encoders.{prefix}.transformer.{name}"
            yield f"{prefix}.transformer.{name}"
    if part == "unet" and (theirs := _of_stability(module, blocks)):
        yield theirs
        yield f"diffusion_model.{theirs}"
        yield f"lora_unet_{theirs.replace('.', '_')}"


def _of_stability(module: str, blocks: Mapping[str, str]) -> str | None:
    """Return the name of a module of the UNet in Stability's code."""
    if module in OUTSIDE_BLOCKS:
        return OUTSIDE_BLOCKS[module]
    for ours, theirs in blocks.items():
        if module.startswith(f"{ours}."):
            rest = module.removeprefix(f"{ours}.")
            within = "op" if ".downsamplers." in ours else WITHIN_BLOCKS.get(rest, rest)
            return f"{theirs}.{within}"
    return None


def stability_blocks(base: Base) -> Iterator[tuple[str, str]]:
    """Yield (our block, its number in Stability's code).

    Input blocks count from 1 after the first convolution, output blocks from 0. Within a block, 0
    is the resnet and 1 the transformer, if any. Downsamplers have their own number; upsamplers come
    last in the block of the level's last resnet.
    """
    unet, number = base.unet, 1
    for b, block in enumerate(_children(unet, "down_blocks")):
        for i in range(len(_children(block, "resnets"))):
            yield from _places(block, f"down_blocks.{b}", i, f"input_blocks.{number}")
            number += 1
        if _children(block, "downsamplers"):
            yield f"down_blocks.{b}.downsamplers.0", f"input_blocks.{number}.0"
            number += 1
    for i, theirs in ((0, "0"), (1, "2")):
        yield f"mid_block.resnets.{i}", f"middle_block.{theirs}"
    yield "mid_block.attentions.0", "middle_block.1"
    number = 0
    for b, block in enumerate(_children(unet, "up_blocks")):
        for i in range(len(_children(block, "resnets"))):
            yield from _places(block, f"up_blocks.{b}", i, f"output_blocks.{number}")
            number += 1
        if _children(block, "upsamplers"):
            place = 2 if _children(block, "attentions") else 1
            yield f"up_blocks.{b}.upsamplers.0", f"output_blocks.{number - 1}.{place}"


def _places(block: nn.Module, ours: str, i: int, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.resnets.{i}", f"{theirs}.0"
    if len(_children(block, "attentions")) > i:
        yield f"{ours}.attentions.{i}", f"{theirs}.1"


def _children(module: nn.Module, name: str) -> list[nn.Module]:
    return list(getattr(module, name, None) or [])
