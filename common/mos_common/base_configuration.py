"""Judge the configurations of a base before its weights are read.

Every key is honoured, or cannot matter, or refuses the base by name. `fingerprint_keys.py` lists
the keys that are known; `ALLOWED` below limits their values to what is computed here as diffusers'
text-to-image pipelines compute it. A key that is not listed must be at its default.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mos_common.errors import BaseModelError
from mos_common.fingerprint_keys import KEYS, PIPELINE
from mos_common.texts import visible

SIZES_OF_XL = 6  # original height and width, crop from the top and the left, target height and width
NO_PART = [None, None]  # what model_index.json has in place of a library and a class
LARGEST_SCALE = 1000
SHORTEST = 3  # a start token, a word, an end token
CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
PLAIN, XL = "StableDiffusion", "StableDiffusionXL"
# An image-to-image pipeline has the same parts and draws from a prompt alone as well.
KINDS = {f"{family}{task}Pipeline": family for family in (PLAIN, XL) for task in ("", "Img2Img")}

_OF_TEXT: Mapping[str, int] = {
    "hidden_size": 8192,
    "intermediate_size": 32768,
    "max_position_embeddings": 4096,
    "num_hidden_layers": 128,
    "vocab_size": 1 << 18,
}
# One number, or a list with one for every block.
_OF_BLOCKS: Mapping[str, int] = {
    "block_out_channels": 4096,
    "layers_per_block": 16,
    "transformer_layers_per_block": 32,
    "reverse_transformer_layers_per_block": 32,
}
_LISTS = (*_OF_BLOCKS, "cross_attention_dim")
# Sizes, and the most that is believed: several times those of XL. They are computed with, and a
# model of any size is built before its weights are found not to fit.
COUNTS: Mapping[str, Mapping[str, int]] = {
    "unet": {
        **dict.fromkeys(("in_channels", "out_channels"), 256),
        "sample_size": 1024,
        **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), 15),
        **dict.fromkeys(("cross_attention_dim", "time_embedding_dim"), 16384),
        **_OF_BLOCKS,
    },
    "vae": {"latent_channels": 256, **_OF_BLOCKS},
    "text_encoder": _OF_TEXT,
    "text_encoder_2": {**_OF_TEXT, "projection_dim": 8192},
    "scheduler": {"num_train_timesteps": 10_000},
}
MOST_BLOCKS = 16
MISSING = object()
MAY_BE_NONE = ("reverse_transformer_layers_per_block", "time_embedding_dim")  # the libraries' own default
_TEXT_ENCODER: Mapping[str, Sequence[object]] = {
    "model_type": ("clip_text_model",),
    "quantization_config": (None,),
}
_TOKENIZER: Mapping[str, Sequence[object]] = {
    "padding_side": ("right",),
    "split_special_tokens": (False,),
    "tokenizer_class": (*CLASSES["tokenizer"], None),
    "truncation_side": ("right",),
}
# The allowed values; a list is allowed if each of its elements is. All other values of these keys
# need inputs that a prompt does not give, or compute what no part of this package follows.
ALLOWED: Mapping[str, Mapping[str, Sequence[object]]] = {
    "model_index": {
        "_class_name": tuple(KINDS),
        "force_zeros_for_empty_prompt": (True, False),
        "requires_aesthetics_score": (False,),
    },
    "scheduler": {
        "predict_epsilon": (True,),
        "prediction_type": ("epsilon", "v_prediction"),
        "solver_p": (None,),
        "timestep_type": ("discrete",),
        "use_dynamic_shifting": (False,),
        "use_flow_sigmas": (False,),
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    },
    "text_encoder": _TEXT_ENCODER,
    "text_encoder_2": _TEXT_ENCODER,
    "tokenizer": _TOKENIZER,
    "tokenizer_2": _TOKENIZER,
    "unet": {
        "_class_name": CLASSES["unet"],
        "addition_embed_type": (None, "text_time"),
        "attention_type": ("default",),
        "class_embed_type": (None,),
        "class_embeddings_concat": (False,),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        "num_class_embeds": (None,),
        "only_cross_attention": (False,),
        "quantization_config": (None,),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "time_cond_proj_dim": (None,),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "vae": {
        "_class_name": CLASSES["vae"],
        "in_channels": (3,),
        "out_channels": (3,),
        "quantization_config": (None,),
    },
}


def read_configuration(name: str, file: Path) -> dict[str, Any]:
    """Return a configuration of the base `name` as it is written in its file.

    Raises:
        BaseModelError: the file cannot be read, or is no JSON object.

    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        json.dumps(found, ensure_ascii=False).encode()  # half of a character can be written, and not digested
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(
            f"{name}: {file.parent.name}/{file.name} cannot be read: download the base again"
        ) from error
    if not isinstance(found, dict):
        raise BaseModelError(f"{name}: {file.parent.name}/{file.name} is not a JSON object: download the base again")
    return found


def judge_configuration(
    name: str, part: str, configuration: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> None:
    """Check each key of one part's configuration; `defaults` are those of the class it is read by.

    Raises:
        BaseModelError: a value is not honoured, or a key is unknown and not at its default.

    """
    for key, value in configuration.items():
        allowed = ALLOWED[part].get(key)
        if allowed is not None and not _is_allowed(value, allowed):
            raise BaseModelError(
                f"{name} cannot be used: {key} of its {part} is {_shown(value)}, and this version works with "
                f"{' or '.join(_shown(each) for each in allowed)}"
            )
        unset = (None, [None, None], (defaults or {}).get(key))
        if allowed is None and key not in KEYS[part] and value not in unset:
            raise BaseModelError(
                f"{name} cannot be used: its {part} has the setting {key} = {_shown(value)}, which this version does "
                "not know, so it cannot tell what it changes: use a base without it, or a newer version"
            )


def defaults_of(kind: Any) -> dict[str, Any]:
    """Return the default configuration of a class of diffusers or transformers."""
    if hasattr(kind, "config_class"):
        return dict(kind.config_class().to_dict())
    known = inspect.signature(kind.__init__).parameters
    return {key: each.default for key, each in known.items() if each.default is not inspect.Parameter.empty}


def judge_longest(name: str, part: str, configuration: Mapping[str, Any]) -> None:
    """Check the length at which a tokenizer cuts texts; None, or none at all, cuts nothing.

    Raises:
        BaseModelError: it is no number, or leaves no room between a start and an end token.

    """
    for key in ("model_max_length", "max_len"):  # the second is an old name of the first
        longest = configuration.get(key)
        if longest is not None and not (type(longest) in (int, float) and SHORTEST <= longest < math.inf):
            raise BaseModelError(
                f"{name} cannot be used: {key} of its {part} is {_shown(longest)}, expected a number of tokens, "
                f"{SHORTEST} at least: download the base again"
            )


def judge_pipeline(name: str, index: Mapping[str, Any]) -> str:
    """Return the family of a pipeline, PLAIN or XL, from its model_index.json.

    Raises:
        BaseModelError: it is another kind of model, lacks a part, or has parts or classes of
            another kind.

    """
    for part, kind in index.items():
        if isinstance(kind, list) and not (
            len(kind) == len(NO_PART) and (kind == NO_PART or all(isinstance(each, str) and each for each in kind))
        ):
            raise BaseModelError(
                f"{name} cannot be used: {visible(part)[:60]} in its model_index.json is {_shown(kind)}, expected a "
                "library and a class, or null twice: download the base again"
            )
    has = {part for part, kind in index.items() if isinstance(kind, list) and kind != NO_PART}
    family = KINDS.get(str(index.get("_class_name")))
    needed = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    needed |= {"text_encoder_2", "tokenizer_2"} if family == XL else set()
    others = has - set(PIPELINE) if family == XL else has - (set(PIPELINE) - {"text_encoder_2", "tokenizer_2"})
    if family is None or not needed <= has or others:
        lacks = f" without {min(needed - has)}" if family and needed - has else ""
        more = f" with {min(others)}" if family and others else ""
        raise BaseModelError(
            f"{name} is a {index.get('_class_name', 'folder of unknown kind')}{lacks}{more}; this version works with "
            "Stable Diffusion 1.x and XL models for text to image, and with 2.x, which is laid out like 1.x "
            "(one or two CLIP text encoders, a UNet2DConditionModel, an AutoencoderKL)"
        )
    for part, classes in CLASSES.items():
        if part in needed and index[part][-1] not in classes:
            raise BaseModelError(
                f"{name} cannot be used: its {part} is a {index[part][-1]}, and this version works with {classes[0]}"
            )
    judge_configuration(name, "model_index", index)
    return family


def judge_counts(name: str, part: str, configuration: Mapping[str, Any]) -> None:
    """Check the sizes that one part's configuration, with its defaults, says.

    Raises:
        BaseModelError: one is no whole number, or is larger than any model's.

    """
    for key, most in COUNTS[part].items():
        value = configuration.get(key, MISSING)
        if value is MISSING or (value is None and key in MAY_BE_NONE):
            continue
        if not (_is_count(value, most) or (key in _LISTS and _are_counts(value, most))):
            raise BaseModelError(
                f"{name} cannot be used: {key} of its {part} is {_shown(value)}, expected a whole number from 1 to "
                f"{most}{', or one for every block' if key in _LISTS else ''}: download the base again"
            )


def judge_fit(name: str, configurations: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that the parts of a base fit each other, given their configurations with defaults.

    Raises:
        BaseModelError: the UNet reads or writes what no other part gives or takes.

    """
    for part, configuration in configurations.items():
        judge_counts(name, part, configuration)
    unet, vae, text = (configurations[part] for part in ("unet", "vae", "text_encoder"))
    channels = unet["in_channels"], unet["out_channels"], vae["latent_channels"]
    if len(set(channels)) > 1:
        raise BaseModelError(
            f"{name} cannot be used: its unet reads {channels[0]} channels and writes {channels[1]}, and its vae has "
            f"{channels[2]}. A model for inpainting (9), instructions (8) or upscaling (7) needs a picture beside the "
            "prompt: use the plain text-to-image model"
        )
    scale = vae["scaling_factor"]
    if type(scale) not in (int, float) or not 0 < scale < LARGEST_SCALE:
        raise BaseModelError(f"{name} cannot be used: scaling_factor of its vae is {_shown(scale)}, expected a number")
    blocks = [*unet["down_block_types"], unet["mid_block_type"], *unet["up_block_types"]]
    if not any("CrossAttn" in str(block) for block in blocks):
        raise BaseModelError(f"{name} cannot be used: its unet has no cross-attention, so it reads no prompt")
    second = configurations.get("text_encoder_2")
    width = text["hidden_size"] + (second["hidden_size"] if second else 0)
    reads = unet["cross_attention_dim"]
    widths = list(reads) if isinstance(reads, list | tuple) else [reads]
    if any(each != width for each in widths):
        raise BaseModelError(
            f"{name} cannot be used: its unet reads text of width {_shown(reads)}, and its text encoders give {width}: "
            "they belong to different models"
        )
    if (unet["addition_embed_type"] == "text_time") != bool(second):
        raise BaseModelError(
            f"{name} cannot be used: addition_embed_type of its unet is {_shown(unet['addition_embed_type'])}, which "
            f"does not fit {'two text encoders' if second else 'one text encoder'}"
        )
    if second:
        _judge_xl(name, configurations)


def _judge_xl(name: str, configurations: Mapping[str, Mapping[str, Any]]) -> None:
    unet, vae, text, second = (configurations[part] for part in ("unet", "vae", "text_encoder", "text_encoder_2"))
    if vae["latents_mean"] is not None or vae["latents_std"] is not None:
        raise BaseModelError(
            f"{name} cannot be used: latents_mean and latents_std of its vae shift latents in a way that this version "
            "does not follow, which XL's pipeline does"
        )
    sizes = unet["addition_time_embed_dim"]
    expected = SIZES_OF_XL * (sizes if isinstance(sizes, int) else 0) + second["projection_dim"]
    if unet["projection_class_embeddings_input_dim"] != expected:
        raise BaseModelError(
            f"{name} cannot be used: projection_class_embeddings_input_dim of its unet is "
            f"{_shown(unet['projection_class_embeddings_input_dim'])}; a pooled prompt and {SIZES_OF_XL} sizes are "
            f"{expected}. XL's refiner reads an aesthetic score: use XL's base model"
        )
    if text["max_position_embeddings"] != second["max_position_embeddings"]:
        raise BaseModelError(
            f"{name} cannot be used: its text encoders read texts of {text['max_position_embeddings']} and "
            f"{second['max_position_embeddings']} tokens, and their features stand side by side"
        )


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _are_counts(value: object, most: int) -> bool:
    """Return whether it has a count for every block, or for every layer of every block."""
    return (
        isinstance(value, list | tuple)
        and 1 <= len(value) <= MOST_BLOCKS
        and all(_is_count(each, most) or _are_counts(each, most) for each in value)
    )


def _is_allowed(value: object, allowed: Sequence[object]) -> bool:
    each = value if isinstance(value, list | tuple) and value else [value]
    return all(
        any(one == known and isinstance(one, bool) == isinstance(known, bool) for known in allowed) for one in each
    )


def _shown(value: object) -> str:
    shown = visible(json.dumps(value, default=str, ensure_ascii=False))
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
