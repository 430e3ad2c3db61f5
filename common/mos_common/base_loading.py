"""Load the parts of a base, and refuse a base whose parts would not compute what it is known for.

Configurations are judged before weights are read (`base_configuration.py`). Then every tensor of a
part must be in its files, in its shape and finite: the libraries fill in random numbers for what is
missing, with a warning at most.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mos_common.base_configuration import (
    PLAIN,
    XL,
    defaults_of,
    judge_configuration,
    judge_counts,
    judge_fit,
    judge_longest,
    judge_pipeline,
    read_configuration,
)
from mos_common.base_files import BaseFiles
from mos_common.errors import BaseModelError, MosError
from mos_common.fingerprint import text_module_name
from mos_common.libraries import first_line, quiet_libraries
from mos_common.samplers import judge_own_sampler, scheduler_class

# Tensors that may be in a file although no text encoder reads them: the positions 0, 1, 2, ... of
# earlier releases, and the projection and scale of a text encoder that was saved for other uses.
HARMLESS = re.compile(r"(^|\.)embeddings\.position_ids$|^text_projection\.weight$|^logit_scale$")
MOST_NAMED = 3  # tensors that a message names
SIZE_OF_ALL = 64  # the side of latents of every model before diffusers 0.9


def load_parts(name: str, files: BaseFiles) -> dict[str, Any]:
    """Return the parts of a base by their names in model_index.json.

    Raises:
        BaseModelError: a part cannot be loaded, is damaged, or computes what is not supported.

    """
    index = read_configuration(name, files.folder / "model_index.json")
    missing = [
        part
        for part, kind in sorted(index.items())
        if part in _kinds() and isinstance(kind, list) and all(kind) and not (files.folder / part).is_dir()
    ]
    if missing:
        raise BaseModelError(f"{name} has no folder {missing[0]}, which its model_index.json names: it is incomplete")
    family = judge_pipeline(name, index)
    kind = scheduler_class(name, str(index["scheduler"][-1]))
    judge_configurations(name, family, files.folder, kind)
    with quiet_libraries():
        with foreign_files(name):
            parts = {part: _load_part(name, part, files) for part in _kinds() if part in index and all(index[part])}
            parts["scheduler"] = _load_scheduler(family, kind, files)
            judge_tokenizers(name, parts)
        judge_own_sampler(name, parts["scheduler"])
    zeros = family == XL and index.get("force_zeros_for_empty_prompt", True)
    return parts | {"force_zeros_for_empty_prompt": bool(zeros)}


@contextmanager
def foreign_files(name: str) -> Iterator[None]:
    """Turn whatever the files of a base lead to into one of our errors, which names the base.

    The libraries raise anything at all for files that are not theirs, and what they let through may
    be of any type.

    Raises:
        BaseModelError: something was raised that is none of our errors.

    """
    try:
        yield
    except MosError:
        raise
    except Exception as error:
        raise BaseModelError(f"{name} cannot be loaded as a diffusion model: {first_line(error)}") from error


def settle_old_size(parts: Mapping[str, Any]) -> None:
    """Correct the size of UNets written before diffusers 0.9, as diffusers' pipeline does.

    Their configurations say half the size of the pictures they were trained on. It is corrected
    after the fingerprint is taken, which stays what it was.
    """
    unet = parts["unet"]
    written = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", str(unet.config.get("_diffusers_version", "")))
    old = written is not None and (int(written[1]), int(written[2])) < (0, 9)
    if old and "text_encoder_2" not in parts and unet.config.sample_size < SIZE_OF_ALL:
        unet.register_to_config(sample_size=SIZE_OF_ALL)


def judge_configurations(name: str, family: str, folder: Path, scheduler: Any) -> None:
    """Check the configuration files of all parts in `folder`, and that the parts fit each other.

    Raises:
        BaseModelError: a value is not honoured, a key is unknown, or two parts do not fit.

    """
    found = {}
    for part, kind in _kinds().items():
        if part.endswith("_2") and family == PLAIN:
            continue
        if part.startswith("tokenizer"):
            file = folder / part / "tokenizer_config.json"
            configuration = read_configuration(name, file) if file.is_file() else {}
            judge_configuration(name, part, configuration)
            judge_longest(name, part, configuration)
            continue
        defaults = defaults_of(kind)
        configuration = read_configuration(name, folder / part / "config.json")
        judge_configuration(name, part, configuration, defaults)
        found[part] = defaults | configuration
    judge_fit(name, found)
    written = read_configuration(name, folder / "scheduler" / "scheduler_config.json")
    judge_configuration(name, "scheduler", written, defaults_of(scheduler))
    judge_counts(name, "scheduler", defaults_of(scheduler) | written)


def judge_weights(name: str, part: str, module: nn.Module, info: Mapping[str, Collection[Any]]) -> None:
    """Check that a part has all its tensors, no others, in their shapes, and all of them finite.

    `info` is what the library reports with `output_loading_info`.

    Raises:
        BaseModelError: it does not; the message names the first tensors.

    """
    absent = sorted(map(str, info["missing_keys"]))
    others = sorted(str(key) for key in info["unexpected_keys"] if not HARMLESS.search(str(key)))
    if absent and {text_module_name(key) for key in absent} <= {text_module_name(key) for key in others}:
        import transformers

        raise BaseModelError(
            f"{name} cannot be used: transformers {transformers.__version__} does not know the names of the tensors of "
            f"its {part}, such as {others[0]}: install transformers 5.6 or newer"
        )
    shapes = sorted(f"{key} {tuple(found)} instead of {tuple(own)}" for key, found, own in info["mismatched_keys"])
    broken = [key for key, value in module.named_parameters() if not bool(torch.isfinite(value).all())]
    for what, tensors in (
        ("misses", absent),
        ("has other shapes than its configuration says:", shapes),
        ("has values that are not finite in", broken),
        ("has tensors that no such part reads:", others),
    ):
        if tensors:
            more = f" and {len(tensors) - MOST_NAMED} more" if len(tensors) > MOST_NAMED else ""
            raise BaseModelError(
                f"{name} cannot be used: its {part} {what} {', '.join(tensors[:MOST_NAMED])}{more}. "
                "The base is incomplete or damaged: download it again"
            )


def judge_tokenizers(name: str, parts: Mapping[str, Any]) -> None:
    """Check that texts are framed as CLIP reads them, and that all their tokens have embeddings.

    Raises:
        BaseModelError: they are not.

    """
    for part, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        if part not in parts:
            continue
        tokenizer, config = parts[part], parts[encoder].config
        framed = [tokenizer.bos_token_id, *tokenizer("a", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        if tokenizer("a").input_ids != framed or None in (*framed, tokenizer.pad_token_id):
            raise BaseModelError(
                f"{name} cannot be used: its {part} makes {tokenizer('a').input_ids} of the text 'a', and CLIP reads "
                f"it between a start and an end token and pads it: {framed} and {tokenizer.pad_token_id}"
            )
        if (largest := max(tokenizer.get_vocab().values())) >= config.vocab_size:
            raise BaseModelError(
                f"{name} cannot be used: its {part} has token {largest}, and its {encoder} has {config.vocab_size} "
                "embeddings: they belong to different models"
            )
    if "tokenizer_2" in parts:
        both = parts["tokenizer"], parts["tokenizer_2"]
        if both[0].get_vocab() != both[1].get_vocab():
            raise BaseModelError(
                f"{name} has two tokenizers of different vocabularies, which no Stable Diffusion XL model has"
            )
        longest = [
            min(int(each.model_max_length), parts["text_encoder"].config.max_position_embeddings) for each in both
        ]
        if longest[0] != longest[1]:
            raise BaseModelError(
                f"{name} cannot be used: its tokenizers cut texts to {longest[0]} and {longest[1]} tokens, and their "
                "features stand side by side"
            )


def _kinds() -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    return {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
    }


def _load_part(name: str, part: str, files: BaseFiles) -> Any:
    if part.startswith("tokenizer"):
        return files.load_tokenizer(part)
    model, info = files.load_model(part, _kinds()[part])
    judge_weights(name, part, model, info)
    return model


def _load_scheduler(family: str, kind: Any, files: BaseFiles) -> Any:
    scheduler = kind.from_pretrained(files.folder / "scheduler", local_files_only=True, **files.scheduler_arguments)
    if family == PLAIN:
        # diffusers' pipeline for 1.x and 2.x reads schedulers so, whatever their files say.
        settled = {"steps_offset": 1, "clip_sample": False}
        scheduler.register_to_config(**{key: value for key, value in settled.items() if key in scheduler.config})
    return scheduler
