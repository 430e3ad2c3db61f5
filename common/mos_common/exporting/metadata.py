"""Metadata of exported files: Stability's ModelSpec, and the keys of kohya's scripts.

Other tools show them, and decide by them which base a file is for.
"""

from __future__ import annotations

import base64
import io
from enum import StrEnum

from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.exporting.shared import Shared
from mos_common.pictures import as_image

SPEC_VERSION = "1.0.1"
PREDICTIONS = {"v_prediction": "v"}  # ModelSpec's word; epsilon is the same in both


class Family(StrEnum):
    """The Stable Diffusion whose layout a base has: ModelSpec's name for its architecture."""

    SD_1 = "stable-diffusion-v1"
    SD_2 = "stable-diffusion-v2-512"
    SD_2_V = "stable-diffusion-v2-768-v"
    XL = "stable-diffusion-xl-v1-base"

    @property
    def is_2(self) -> bool:
        """True for Stable Diffusion 2.x, whose text encoder is OpenCLIP's."""
        return self in (Family.SD_2, Family.SD_2_V)


KOHYA_VERSIONS = {
    Family.SD_1: "sd_v1",
    Family.SD_2: "sd_v2",
    Family.SD_2_V: "sd_v2_v",
    Family.XL: "sdxl_base_v1-0",
}


def family_of(base: Base) -> Family:
    """Return the family of a base.

    As for other tools, linear projections around the transformers tell 2.x from 1.x.
    """
    if base.text_encoder_2 is not None:
        return Family.XL
    if base.unet.config.use_linear_projection:
        return Family.SD_2_V if _prediction(base) == "v" else Family.SD_2
    return Family.SD_1


def model_metadata(shared: Shared, base: Base, kind: str, *, trigger: str, words: str, usage: str) -> dict[str, str]:
    """Return the ModelSpec of a file; `kind` is "lora", "textual-inversion", or "" for a model.

    `words` says how the words are made. There is no date: equal exports are equal files.
    """
    family = family_of(base)
    architecture = f"{family}/{kind}" if kind else str(family)
    # ModelSpec names the code whose layout and names a file has.
    stability = family is Family.XL or kind != "lora"
    told = {
        "modelspec.sai_model_spec": SPEC_VERSION,
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models" if stability else "diffusers",
        "modelspec.title": shared.title,
        "modelspec.description": (
            f"{shared.origin} on the base model {shared.base_name} ({shared.base_fingerprint}), which predicts "
            f"{base.scheduler.config.prediction_type}. {words}"
        ),
        "modelspec.author": _by_concept({credit.token: credit.author for credit in shared.credits}),
        "modelspec.license": _by_concept({credit.token: credit.licence for credit in shared.credits}),
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": usage,
        "modelspec.resolution": f"{base.picture_size}x{base.picture_size}",
        "modelspec.prediction_type": _prediction(base),
    }
    return {key: text for key, text in told.items() if text}


def lora_metadata(base: Base, name: str, dim: int, alpha: float) -> dict[str, str]:
    """Return what kohya's scripts write into a LoRA, as far as it is true of ours.

    `dim` is the highest rank; `name` is the file's, by which A1111's prompts call it.
    """
    family = family_of(base)
    return {
        "ss_base_model_version": KOHYA_VERSIONS[family],
        "ss_v2": str(family.is_2),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(dim),
        "ss_network_alpha": str(alpha),
        "ss_output_name": name,
    }


def thumbnail(picture: Float[Tensor, "3 height width"]) -> dict[str, str]:
    """Return a drawing as ModelSpec's thumbnail: a JPEG as a data URL."""
    buffer = io.BytesIO()
    as_image(picture).save(buffer, format="JPEG", quality=90)
    return {"modelspec.thumbnail": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"}


def _prediction(base: Base) -> str:
    prediction = str(base.scheduler.config.prediction_type)
    return PREDICTIONS.get(prediction, prediction)


def _by_concept(by_token: dict[str, str]) -> str:
    if len(by_token) == 1:
        return next(iter(by_token.values()))
    return "; ".join(f"{token}: {text or 'not given'}" for token, text in by_token.items())
