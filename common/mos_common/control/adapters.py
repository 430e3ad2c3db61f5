"""Adapters that read a picture beside the text: diffusers' T2I-Adapters and ControlNets.

A folder in diffusers' layout is read offline, its weights from safetensors only. Whether it fits is
asked of the base: a T2I-Adapter by the features that it makes, a ControlNet, which is a copy of the
UNet's first half, by its configuration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mos_common.base_model import Base
from mos_common.digests import digest_of_file
from mos_common.errors import RequestError
from mos_common.files import is_file
from mos_common.libraries import quiet_libraries

if TYPE_CHECKING:
    from diffusers import ControlNetModel, T2IAdapter

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model{}.safetensors"
VARIANTS = ("", ".fp16")
MOST_CONFIG_BYTES = 64 << 10
SHARED = (
    "in_channels",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)
"""What a ControlNet's configuration has in common with that of its UNet."""


@dataclass(frozen=True)
class Adapter:
    """A T2I-Adapter or a ControlNet that fits a base, on its device and in its number format.

    `digest` is that of its configuration and its weights.
    """

    name: str
    model: T2IAdapter | ControlNetModel
    digest: str

    @property
    def is_controlnet(self) -> bool:
        """Whether it runs at every step; a T2I-Adapter reads the picture once."""
        return hasattr(self.model, "controlnet_cond_embedding")

    @property
    def pools(self) -> bool:
        """Whether what it adds has no places, so that it cannot be for a region."""
        return bool(self.model.config.get("global_pool_conditions"))

    @property
    def channels(self) -> int:
        """The channels of the picture that it reads: 1 for grey, 3 for colours."""
        count: int = self.model.config.conditioning_channels if self.is_controlnet else self.model.config.in_channels
        return count

    def check_size(self, height: int, width: int) -> None:
        """Check that it can read a picture of a size in pixels.

        Raises:
            RequestError: a T2I-Adapter's cells do not divide it.

        """
        unit = 1 if self.is_controlnet else self.model.downscale_factor
        if height % unit or width % unit:
            raise RequestError(
                f"{width} x {height} pixels: adapter {self.name} reads sizes that are multiples of {unit}"
            )


def read_adapter(folder: Path, base: Base, name: str = "") -> Adapter:
    """Read an adapter that fits a base; `name` stands for it in messages and recipes.

    Raises:
        RequestError: there is none, it cannot be read, or it does not fit; the message says why.

    """
    name = name or folder.name
    told = _class_of(folder)
    weights = [variant for variant in VARIANTS if (folder / WEIGHTS.format(variant)).is_file()]
    if not weights:
        raise RequestError(
            f"adapter {folder}: no {WEIGHTS.format('')}; weights are read from safetensors only, so convert it with "
            "diffusers' save_pretrained"
        )
    model = _loaded(folder, told, weights[0])
    adapter = Adapter(name, model, _digest(folder, weights[0]))
    if adapter.channels not in (1, 3):
        raise RequestError(f"adapter {name} reads {adapter.channels} channels: expected 1 (grey) or 3 (colours)")
    with torch.inference_mode():
        _check_controlnet(adapter, base) if adapter.is_controlnet else _check_features(adapter, base)
    torch.nn.Module.to(model, device=base.device, dtype=base.dtype)
    return adapter


def _class_of(folder: Path) -> str:
    """Return the class that a folder's configuration names."""
    file = folder / CONFIG
    if not is_file(file):
        raise RequestError(f"no adapter at {folder}: expected a folder with {CONFIG}, as diffusers writes it")
    try:
        with file.open("rb") as opened:
            told = json.loads(opened.read(MOST_CONFIG_BYTES))
        found = told["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{file} is not the configuration of an adapter ({type(error).__name__})") from error
    if found not in ("T2IAdapter", "ControlNetModel"):
        raise RequestError(
            f"{folder} is a {str(found)[:60]!r}: expected a T2IAdapter or a ControlNetModel of diffusers"
        )
    return str(found)


def _loaded(folder: Path, told: str, variant: str) -> Any:
    import diffusers

    options = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    try:
        with quiet_libraries():
            model = getattr(diffusers, told).from_pretrained(folder, variant=variant.lstrip(".") or None, **options)
    except Exception as error:  # of a stranger's file diffusers, torch and safetensors raise what they like
        raise RequestError(f"adapter {folder} cannot be loaded as a {told}: {str(error)[:300]}") from error
    return model.float().requires_grad_(False).eval()


def _digest(folder: Path, variant: str) -> str:
    files = (CONFIG, WEIGHTS.format(variant))
    return hashlib.sha256(" ".join(digest_of_file(folder / file) for file in files).encode()).hexdigest()


def _check_features(adapter: Adapter, base: Base) -> None:
    """Check that a T2I-Adapter makes the features that the UNet's levels can add."""
    # So large that every level halves it evenly.
    side = max(base.pixels_per_latent, adapter.model.downscale_factor) << len(base.unet.down_blocks)
    picture = torch.zeros(1, adapter.channels, side, side)
    made = [tuple(feature.shape[1:3]) for feature in adapter.model(picture)]
    wanted = list(_added_to(base, side // base.pixels_per_latent))
    if made != wanted[: len(made)]:
        raise _misfit(
            adapter, base, f"its features are {_said(made)}", f"adds {_said(wanted)}, of {side} pixels a side"
        )


def _added_to(base: Base, side: int) -> Iterator[tuple[int, int]]:
    """Yield (channels, cells a side) of where a UNet adds features: its levels, then its middle.

    A level without attention adds after its downsampling, one with attention before it.
    """
    channels = base.unet.config.block_out_channels
    for count, level in zip(channels, base.unet.down_blocks, strict=True):
        halved = side // 2 if level.downsamplers else side
        yield count, side if getattr(level, "has_cross_attention", False) else halved
        side = halved
    yield channels[-1], side


def _check_controlnet(adapter: Adapter, base: Base) -> None:
    """Check that a ControlNet is a copy of the UNet's first half, for pictures of its size."""
    own, unet = adapter.model.config, base.unet.config
    for key in SHARED:
        pair = [list(value) if isinstance(value, tuple) else value for value in (own.get(key), unet.get(key))]
        if pair[0] != pair[1]:
            raise _misfit(adapter, base, f"its {key} is {pair[0]}", f"has {pair[1]}")
    factor = 2 ** (len(own.conditioning_embedding_out_channels) - 1)
    if factor != base.pixels_per_latent:
        raise _misfit(
            adapter, base, f"it reads {factor} pixels to a cell of the latents", f"has {base.pixels_per_latent}"
        )


def _said(shapes: list[tuple[int, int]]) -> str:
    return ", ".join(f"{channels} x {side} x {side}" for channels, side in shapes)


def _misfit(adapter: Adapter, base: Base, found: str, expected: str) -> RequestError:
    return RequestError(
        f"adapter {adapter.name} does not fit {base.name}: {found}, and the base {expected}; give one that was made for "
        "this kind of base"
    )
