"""The fingerprint of a base model: a digest of everything that determines its output.

weights         rounded to float16, so that float16 and float32 downloads of one model agree
configurations  of UNet, VAE and text encoders as loaded (keys: `fingerprint_keys.py`)
tokenizers      vocabulary, merges, special tokens, padding, longest text
noise schedule  as numbers; not the choice of sampler

Fingerprints of earlier releases covered only the weights, the vocabulary, the prediction type and
the VAE's scaling factor. The legacy fingerprint of an open base is recognised (`is_base`), and
replaced by the current one when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mos_common.digests import bits_of, digest_of_json
from mos_common.fingerprint_keys import covered

if TYPE_CHECKING:
    from mos_common.base_model import Base

RULE = "00000002"
"""The end of every current fingerprint; legacy fingerprints, of the same form, lack it."""

MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
TOKENIZERS = ("tokenizer", "tokenizer_2")
# Alphas below this count as zero: samplers that rescale to zero signal keep a tiny number, each its
# own, to avoid division by zero.
NO_SIGNAL = 1e-6


@dataclass(frozen=True)
class Fingerprints:
    """The fingerprints of a base by the current rule and by the legacy rule.

    `rounded`: all its weights are bfloat16 numbers, so this copy has lost bits and has another
    fingerprint than the original.
    """

    current: str
    legacy: str
    rounded: bool = False


def fingerprints_of(parts: Mapping[str, Any]) -> Fingerprints:
    """Return the fingerprints of a loaded model, in one pass over its weights.

    `parts` are its modules, tokenizers and scheduler by their names in `model_index.json`, with the
    weights in the precision they were stored in, or a higher one.
    """
    weights, rounded = _weights(parts)
    return Fingerprints(_current(weights.hexdigest(), parts), legacy_fingerprint(weights, parts), rounded)


def legacy_fingerprint(weights: hashlib._Hash, parts: Mapping[str, Any]) -> str:
    """Return the fingerprint by the legacy rule; `weights` has hashed only the weights."""
    digest = weights.copy()
    for word, index in sorted(parts["tokenizer"].get_vocab().items()):
        digest.update(f"{word}\0{index}\0".encode())
    prediction, factor = parts["scheduler"].config.prediction_type, float(parts["vae"].config.scaling_factor)
    digest.update(f"{prediction}\0{factor}".encode())
    return digest.hexdigest()


def describe_parts(parts: Mapping[str, Any]) -> dict[str, object]:
    """Return everything that the fingerprint covers except the weights, as JSON values."""
    longest = int(_config(parts["text_encoder"])["max_position_embeddings"])
    return {
        **{part: covered_configuration(part, _config(parts[part])) for part in MODELS if part in parts},
        **{part: describe_tokenizer(parts[part], longest) for part in TOKENIZERS if part in parts},
        "noise": noise_schedule(parts["scheduler"]),
    }


def covered_configuration(part: str, config: Mapping[str, Any]) -> dict[str, object]:
    """Return the covered keys and values of one configuration; 1 and 1.0 are the same value."""
    return {key: _plain(value) for key, value in config.items() if covered(part, key)}


def describe_tokenizer(tokenizer: Any, longest: int) -> dict[str, object]:
    """Return everything that determines the token ids of a text.

    `longest` is the number of positions of the text encoder. CLIP's normalisation and splitting of
    text are left out: they are library code, the same for every base.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized")
    return {
        "vocabulary": tokenizer.get_vocab(),
        "merges": [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]],
        "special": [
            [index, *(getattr(token, flag) for flag in flags)]
            for index, token in sorted(tokenizer.added_tokens_decoder.items())
        ],
        "ids": [getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad", "unk")],
        "longest": min(int(tokenizer.model_max_length), longest),
    }


def noise_schedule(scheduler: Any) -> dict[str, object]:
    """Return the noise schedule of training: ᾱ per step to six digits, and the prediction type.

    It also says whether ᾱ ends at zero, and is the same for every sampler of one model. A sampler
    without ᾱ (EDM, flow matching) is described by its class and configuration.
    """
    config = dict(scheduler.config)
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        return sampler_of(scheduler)
    alphas = _exact_alphas(config, scheduler.alphas_cumprod.double().cpu())
    return {
        "alphas": [f"{alpha:.5e}" if alpha > NO_SIGNAL else "0" for alpha in alphas.tolist()],
        "prediction": str(config.get("prediction_type", "epsilon")),
        "zero signal": bool(alphas[-1] <= NO_SIGNAL),
    }


def sampler_of(scheduler: Any) -> dict[str, object]:
    """Return a sampler's class and configuration as JSON values; recordings depend on both."""
    config = {key: _plain(value) for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"class": type(scheduler).__name__, "config": config}


def is_legacy(fingerprint: str) -> bool:
    """Return whether a fingerprint was made by the legacy rule."""
    return not fingerprint.endswith(RULE)


def is_base(fingerprint: str, base: Base) -> bool:
    """Return whether a fingerprint, current or legacy, is that of `base`."""
    return fingerprint in (base.fingerprint, base.legacy_fingerprint)


def why_not(fingerprint: str, base: Base) -> str:
    """Return the known difference from the base of another fingerprint: "; ..." or empty."""
    if base.rounded:
        return (
            f"; the weights of {base.name} are rounded to bfloat16, and such a copy has lost bits: it is "
            f"another base model than "
            "the float16 or float32 copy, so use one of these"
        )
    if is_legacy(fingerprint):
        return (
            f"; {fingerprint[:12]} is a fingerprint by the old rule, and by that rule {base.name} is "
            f"{base.legacy_fingerprint[:12]}: it is another base model under either"
        )
    if fingerprint == base.bfloat16_fingerprint:
        return (
            f"; {fingerprint[:12]} is a copy of {base.name} whose weights are rounded to bfloat16, which has "
            f"lost bits and makes "
            "it another base model: the float16 and float32 copies agree"
        )
    return ""


def fingerprint_in_bfloat16(base: Base) -> str:
    """Return the fingerprint of a bfloat16 copy of `base`; this reads all weights."""
    parts = {name: part for name in (*MODELS, *TOKENIZERS, "scheduler") if (part := getattr(base, name)) is not None}
    return _current(_weights(parts, torch.bfloat16)[0].hexdigest(), parts)


def text_module_name(name: str) -> str:
    """Return a text encoder's module name with the prefix `text_model.` that some lack."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _current(weights: str, parts: Mapping[str, Any]) -> str:
    digest = digest_of_json({"weights": weights, **describe_parts(parts)})
    return digest[: -len(RULE)] + RULE


def _weights(parts: Mapping[str, Any], through: torch.dtype | None = None) -> tuple[hashlib._Hash, bool]:
    """Hash all weights in float16; also return whether all of them are bfloat16 numbers.

    Weights are rounded to `through`, if given, before float16. The bytes are those of the legacy
    rule, so one pass serves both rules, and tensors are read one at a time, so the model is not
    copied. `digests.digest_of_tensors` does neither.
    """
    digest, rounded = hashlib.sha256(), True
    for name, parameter in sorted(_canonical_parameters(parts)):
        stored = parameter.detach()
        rounded = rounded and torch.equal(stored, stored.to(torch.bfloat16).to(stored.dtype))
        digest.update(f"{name}\0{tuple(stored.shape)}\0".encode())
        digest.update(bits_of((stored if through is None else stored.to(through)).to(torch.float16)))
    return digest, rounded


def _canonical_parameters(parts: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for part in MODELS:
        if part in parts:
            for name, parameter in parts[part].named_parameters():
                yield f"{part}.{name if part in ('unet', 'vae') else text_module_name(name)}", parameter


def _config(model: Any) -> dict[str, Any]:
    """Return a configuration with its defaults, of diffusers (mapping) or transformers (object)."""
    config = model.config
    return dict(config) if isinstance(config, Mapping) else dict(config.to_dict())


def _plain(value: Any) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | None) else str(value)


def _exact_alphas(config: Mapping[str, Any], loaded: Tensor) -> Tensor:
    """Return ᾱ in float64 for the usual schedules, else as loaded.

    The libraries compute ᾱ in float32, where rounding depends on the processor, so six digits of a
    thousand numbers would not agree everywhere. The values computed here are used only if they
    match the loaded ones.
    """
    start, end, steps = (config.get(key) for key in ("beta_start", "beta_end", "num_train_timesteps"))
    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
    elif start is None or end is None or steps is None:
        return loaded
    elif config.get("beta_schedule") == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    plain = torch.cumprod(1 - betas, dim=0)
    roots = plain.sqrt()
    shifted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    for alphas in (plain, shifted**2):
        if alphas.shape == loaded.shape and torch.allclose(alphas, loaded, rtol=1e-3, atol=NO_SIGNAL):
            return alphas
    return loaded
