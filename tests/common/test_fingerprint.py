"""The fingerprint of a base: all that changes the output changes it; legacy ones are known."""

from __future__ import annotations

import copy
import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTokenizer

from mos_common.base_model import Base, load_base
from mos_common.concept import check_fits
from mos_common.concept_file import content_digest, read_concept, rekey_concept, write_concept
from mos_common.errors import BaseModelError, ConceptError
from mos_common.fingerprint import (
    MODELS,
    TOKENIZERS,
    fingerprints_of,
    is_base,
    is_legacy,
    noise_schedule,
    why_not,
)
from mos_common.fingerprint_keys import IN, KEYS, SCHEDULER
from mos_common.fused_model import FusedModel, Manifest, check_base

TINY_BEFORE = "e048d85c219053c6697c0d86a6339b5f810b3c0c433a9d1320dd3db940d64244"
LIBRARY = {"_class_name", "_diffusers_version", "_name_or_path"}
ENCODER = {
    *(
        "_name_or_path",
        "transformers_version",
        "architectures",
        "model_type",
        "dtype",
    ),  # paths, versions, classes, formats
    *("attention_dropout", "initializer_factor", "initializer_range"),  # training
    *(
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "chunk_size_feed_forward",
    ),  # what is returned, memory
    *("id2label", "label2id", "problem_type", "is_encoder_decoder"),  # classifiers, decoders
    *("bos_token_id", "pad_token_id"),  # the tokenizer's business
}
OUT = {
    "unet": LIBRARY | {"dropout"},
    "vae": LIBRARY | {"sample_size"},
    "text_encoder": ENCODER,
    "text_encoder_2": ENCODER,
}
OF_NOISE = {
    *("beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("num_train_timesteps", "prediction_type", "rescale_betas_zero_snr"),
}
SAMPLERS = (
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "LMSDiscreteScheduler",
)


def parts_of(base: Base) -> dict[str, Any]:
    """The parts of a loaded base by their names in `model_index.json`."""
    found = {name: getattr(base, name) for name in (*MODELS, *TOKENIZERS, "scheduler")}
    return {name: part for name, part in found.items() if part is not None}


def fingerprint(base: Base, **other: Any) -> str:
    """The fingerprint of a base with some parts replaced."""
    return fingerprints_of(parts_of(base) | other).current


def with_key(model: Any, key: str, value: object) -> Any:
    """The same weights under a configuration in which one key is another."""
    changed = copy.copy(model)
    if isinstance(model.config, dict):
        changed.register_to_config(**{key: value})
    else:
        changed.config = copy.deepcopy(model.config)
        changed.config._attn_implementation = "eager"  # the only one that can return attentions
        setattr(changed.config, key, value)
    return changed


def config_of(model: Any) -> dict[str, Any]:
    return dict(model.config) if isinstance(model.config, dict) else model.config.to_dict()


def other_than(value: Any) -> Any:
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case list() | tuple():
            return [*value, value[0]]
        case dict():
            return {**value, 7: "seven"}
    return 7


@pytest.fixture
def copied(random_base_folder, tmp_path) -> Path:
    """A copy of the random base that a test may change."""
    return Path(shutil.copytree(random_base_folder(), tmp_path / "copy"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def loaded(folder: Path) -> Base:
    return load_base(str(folder), device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_each_single_key_of_a_configuration_changes_the_fingerprint_or_is_one_that_computes_nothing(xl, part):
    model = parts_of(xl)[part]
    changing = set()
    for key, value in config_of(model).items():
        if key in ("dtype", "id2label", "label2id", "problem_type"):  # transformers checks their values
            changed = {"dtype": torch.float16, "id2label": {0: "a"}, "label2id": {"a": 0}}.get(key, "regression")
        else:
            changed = other_than(value)
        if fingerprint(xl, **{part: with_key(model, key, changed)}) != xl.fingerprint:
            changing.add(key)
    assert config_of(model).keys() - changing == OUT[part] & config_of(model).keys()


def test_the_one_list_says_of_each_key_that_the_libraries_know_whether_it_is_in():
    known = {
        "unet": inspect.signature(diffusers.UNet2DConditionModel.__init__).parameters.keys() - {"self"},
        "vae": inspect.signature(diffusers.AutoencoderKL.__init__).parameters.keys() - {"self"},
        "text_encoder": CLIPTextConfig().to_dict().keys(),
        "text_encoder_2": CLIPTextConfig().to_dict().keys(),
    }
    for part, keys in known.items():
        assert keys <= KEYS[part].keys(), part
    for keys in (*KEYS.values(), SCHEDULER):
        assert all(reason == IN or len(reason) > 10 for reason in keys.values())
    assert {key for key, reason in SCHEDULER.items() if reason == IN} == OF_NOISE


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_key_that_nobody_knows_counts_as_in(sixteen, part):
    changed = with_key(parts_of(sixteen)[part], "window", 3)
    assert fingerprint(sixteen, **{part: changed}) != sixteen.fingerprint


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_an_absent_key_equals_its_default(sixteen, copied, part):
    """Other releases write fewer keys; all keys at their default are removed at once."""
    file = copied / part / "config.json"
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    if part in kinds:
        known = inspect.signature(kinds[part].__init__).parameters
        defaults = {name: parameter.default for name, parameter in known.items()}
    else:
        defaults = CLIPTextConfig().to_dict()
    told = json.loads(file.read_text())
    left = {key: value for key, value in told.items() if key not in defaults or value != json_of(defaults[key])}
    assert len(left) < len(told)
    file.write_text(json.dumps(left))
    assert loaded(copied).fingerprint == sixteen.fingerprint


def json_of(value: object) -> object:
    return json.loads(json.dumps(value, default=str))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "attention_head_dim", 4),
        ("unet", "norm_eps", 1e-4),
        ("unet", "act_fn", "gelu"),
        ("vae", "scaling_factor", 0.31),
        ("vae", "shift_factor", 0.1),
        ("text_encoder", "hidden_act", "gelu"),
        ("text_encoder", "num_attention_heads", 4),
        ("scheduler", "beta_end", 0.9),
        ("scheduler", "beta_schedule", "linear"),
        ("scheduler", "prediction_type", "v_prediction"),
    ],
)
def test_what_computes_otherwise_is_another_base(sixteen, copied, part, key, value):
    """The same weights fit: only the files say that it is another model."""
    edit(copied / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **{key: value})
    assert loaded(copied).fingerprint != sixteen.fingerprint


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_choice_of_sampler_is_not_part_of_the_base(sixteen, copied, sampler):
    getattr(diffusers, sampler).from_config(sixteen.scheduler.config).save_pretrained(copied / "scheduler")
    edit(copied / "model_index.json", scheduler=["diffusers", sampler])
    other = loaded(copied)
    assert type(other.scheduler).__name__ == sampler
    assert other.fingerprint == sixteen.fingerprint


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_single_key_of_a_sampler_is_of_the_noise_or_of_the_way_it_is_taken_away(sixteen, sampler):
    kind = getattr(diffusers, sampler)
    config = {key: value for key, value in kind.from_config(sixteen.scheduler.config).config.items() if key[0] != "_"}
    valid = {
        "beta_schedule": "linear",
        "beta_end": 0.02,
        "trained_betas": [0.01] * 1000,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "algorithm_type": "sde-dpmsolver++",
        "solver_type": "heun",
        "final_sigmas_type": "sigma_min",
        "interpolation_type": "log_linear",
        "timestep_type": "continuous",
        "variance_type": "learned",
        "time_shift_type": "linear",
        "lambda_min_clipped": -5.1,
    }
    before, changing = noise_schedule(kind.from_config(config)), set()
    for key, value in config.items():
        if key == "use_flow_sigmas":
            continue  # what it samples is no diffusion model
        changed = kind.from_config({**config, key: valid.get(key, other_than(value))})
        if noise_schedule(changed) != before:
            changing.add(key)
    assert changing == OF_NOISE & config.keys()


@pytest.mark.parametrize("sampler", ["EulerDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_the_noise_schedule_is_the_samplers_numbers_to_six_digits(sampler, rescaled):
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = getattr(diffusers, sampler)(**betas, rescale_betas_zero_snr=rescaled)
    told = noise_schedule(scheduler)
    alphas = torch.tensor([float(alpha) for alpha in told["alphas"]])
    torch.testing.assert_close(alphas, scheduler.alphas_cumprod, rtol=1e-3 if rescaled else 2e-6, atol=1e-6)
    assert told["zero signal"] is rescaled
    assert all(alpha == "0" or len(alpha) == len("1.23456e-01") for alpha in told["alphas"])


def test_a_sampler_without_the_usual_numbers_is_known_by_its_own_configuration():
    one, other = (diffusers.EDMEulerScheduler(sigma_data=width) for width in (0.5, 0.6))
    assert noise_schedule(one)["class"] == "EDMEulerScheduler"
    assert noise_schedule(one) != noise_schedule(other)
    assert noise_schedule(one) == noise_schedule(diffusers.EDMEulerScheduler(sigma_data=0.5))


def tokenizer_like(tokenizer: Any, **changes: Any) -> CLIPTokenizer:
    kept = {
        name: getattr(tokenizer, name)
        for name in ("unk_token", "bos_token", "eos_token", "pad_token", "model_max_length")
    }
    merges = [("c", "a"), ("ca", "t</w>")]
    return CLIPTokenizer(**{"vocab": tokenizer.get_vocab(), "merges": merges, **kept, **changes})


def test_the_same_tokenizer_made_anew_is_the_same_base(sixteen):
    assert fingerprint(sixteen, tokenizer=tokenizer_like(sixteen.tokenizer)) == sixteen.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"merges": [("c", "a")]},
        {"merges": [("ca", "t</w>"), ("c", "a")]},
        {"pad_token": "#"},
        {"eos_token": "<|startoftext|>"},
        {"unk_token": "#"},
        {"model_max_length": 19},
    ],
    ids=str,
)
def test_what_changes_token_ids_is_another_base(sixteen, change):
    changed = tokenizer_like(sixteen.tokenizer, **change)
    assert fingerprint(sixteen, tokenizer=changed) != sixteen.fingerprint


def test_another_word_is_another_base(sixteen):
    vocabulary = sixteen.tokenizer.get_vocab()
    vocabulary["cow</w>"] = vocabulary.pop("*</w>")
    assert fingerprint(sixteen, tokenizer=tokenizer_like(sixteen.tokenizer, vocab=vocabulary)) != sixteen.fingerprint


def test_a_longest_text_beyond_what_the_encoder_reads_changes_nothing(sixteen):
    """Files that do not say it have a very large number."""
    changed = tokenizer_like(sixteen.tokenizer, model_max_length=10**30)
    assert fingerprint(sixteen, tokenizer=changed) == sixteen.fingerprint


def test_the_second_tokenizer_of_xl_counts_too(xl):
    assert fingerprint(xl, tokenizer_2=xl.tokenizer) != xl.fingerprint


@pytest.fixture
def rounded(sixteen, copied) -> Base:
    """The copy of the random base in bfloat16."""
    for file in copied.rglob("*.safetensors"):
        save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file, {"format": "pt"})
    return loaded(copied)


def test_a_bfloat16_copy_is_another_base_and_both_sides_are_told_why(sixteen, rounded, make_concept):
    assert rounded.fingerprint != sixteen.fingerprint
    with pytest.raises(ConceptError, match=r"rounded to bfloat16.*lost bits.*float16 or float32 copy"):
        check_fits(make_concept(sixteen), rounded)
    with pytest.raises(ConceptError, match=r"a copy of .* rounded to bfloat16.*lost bits"):
        check_fits(make_concept(rounded), sixteen)


def test_another_base_is_not_called_a_bfloat16_copy(sixteen, random_base):
    other = random_base(seed=1)
    assert not sixteen.rounded
    assert why_not(other.fingerprint, sixteen) == ""


def test_computing_in_bfloat16_makes_no_copy(sixteen, random_base_folder):
    computing = load_base(str(random_base_folder()), device="cpu", dtype="bfloat16")
    assert computing.fingerprint == sixteen.fingerprint
    assert not computing.rounded


def test_the_old_fingerprint_is_that_of_earlier_releases(tiny):
    assert tiny.legacy_fingerprint == TINY_BEFORE
    assert is_base(TINY_BEFORE, tiny)
    assert is_legacy(TINY_BEFORE)
    assert not is_legacy(tiny.fingerprint)


def test_an_old_concept_of_the_open_base_is_taken_under_the_new_fingerprint(sixteen, make_concept):
    concept = make_concept(sixteen)
    old = replace(concept, base_fingerprint=sixteen.legacy_fingerprint)
    assert check_fits(old, sixteen).base_fingerprint == sixteen.fingerprint
    assert content_digest(check_fits(old, sixteen)) == content_digest(concept)


def test_an_old_concept_file_is_rekeyed_and_nothing_else_in_it_changes(sixteen, make_concept, tmp_path):
    concept, file, fresh = make_concept(sixteen), tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    write_concept(replace(concept, base_fingerprint=sixteen.legacy_fingerprint), file)
    write_concept(concept, fresh)
    before = content_digest(read_concept(file))
    rekey_concept(file, sixteen)
    assert file.read_bytes() == fresh.read_bytes()
    assert content_digest(read_concept(file)) == before
    rekey_concept(file, sixteen)
    assert file.read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("of", [lambda random_base: random_base(seed=1).legacy_fingerprint, lambda _: "ab" * 32])
def test_an_old_fingerprint_of_another_base_is_an_error_that_says_so(
    sixteen, random_base, make_concept, tmp_path, of: Callable[[Any], str]
):
    old = of(random_base)
    concept = replace(make_concept(sixteen), base_fingerprint=old)
    said = rf"{old[:12]} is a fingerprint by the old rule.*{sixteen.legacy_fingerprint[:12]}"
    with pytest.raises(ConceptError, match=said):
        check_fits(concept, sixteen)
    write_concept(concept, tmp_path / "other.safetensors")
    with pytest.raises(ConceptError, match=said):
        rekey_concept(tmp_path / "other.safetensors", sixteen)
    assert read_concept(tmp_path / "other.safetensors").base_fingerprint == old
    manifest = Manifest(base=old, base_name="other", method="sum", settings={}, versions={}, concepts=[])
    with pytest.raises(BaseModelError, match=said):
        check_base(FusedModel({}, {}, manifest), sixteen)


def test_a_model_that_was_published_before_is_recognised(sixteen):
    manifest = Manifest(
        base=sixteen.legacy_fingerprint, base_name="random", method="sum", settings={}, versions={}, concepts=[]
    )
    check_base(FusedModel({}, {}, manifest), sixteen)
