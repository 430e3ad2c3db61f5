"""Settings that depend on the base model, as one small table.

The paper's numbers were found on Stable Diffusion 1.x and are used for every base without numbers
of its own; those of `tiny`, the embedded model, were measured (docs/tuning.md). Spreads and norms
of word embeddings are computed from the base's token table (`mos_client.tuning`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Preset:
    """The recommended settings of one family of base models.

    Learning rates are per AdamW step: `words` for the new embedding rows, `text` for the text
    encoder's LoRA, `unet` for the UNet's. `guidance` is the classifier-free guidance scale of
    drawings.
    """

    name: str
    steps: int
    batch: int
    learning_rate_words: float
    learning_rate_text: float
    learning_rate_unet: float
    guidance: float
    noise_offset: float


STABLE_DIFFUSION = Preset(
    "stable-diffusion",
    steps=800,
    batch=4,
    learning_rate_words=1e-3,
    learning_rate_text=1e-5,
    learning_rate_unet=1e-4,
    guidance=7.5,
    noise_offset=0.01,
)
TINY = Preset(
    "tiny",
    steps=300,
    batch=8,
    learning_rate_words=1e-2,
    learning_rate_text=3e-4,
    learning_rate_unet=1e-3,
    guidance=2.5,
    noise_offset=0.0,
)


def preset_for(base_name: str, unet: Mapping[str, Any] | None = None) -> Preset:
    """Return the preset of a base model: that of `tiny` for a model of its sizes, by any name.

    `unet` is the configuration of the UNet; before the model is open, its name must do.
    """
    if base_name == TINY.name:
        return TINY
    return TINY if unet is not None and _sizes(unet) == _sizes(_unet_of_tiny()) else STABLE_DIFFUSION


def _sizes(unet: Mapping[str, Any]) -> tuple[object, ...]:
    return (tuple(unet["block_out_channels"]), unet["cross_attention_dim"], unet["sample_size"])


@cache
def _unet_of_tiny() -> Mapping[str, Any]:
    from mos_tiny import base_folder

    config: dict[str, Any] = json.loads((base_folder() / "unet" / "config.json").read_text(encoding="utf-8"))
    return config
