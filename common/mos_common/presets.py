"""Settings that depend on the base model, as one small table.

The paper's numbers were found on Stable Diffusion 1.x and are used for every base without numbers
of its own; those of `tiny`, the embedded model, were measured (docs/tuning.md). Spreads and norms
of word embeddings are computed from the base's token table (`mos_client.tuning`).
"""

from __future__ import annotations

from dataclasses import dataclass


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


def preset_for(base_name: str) -> Preset:
    """Return the preset of a base model by its name: `tiny`, or any other."""
    return TINY if base_name == TINY.name else STABLE_DIFFUSION
