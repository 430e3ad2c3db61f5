"""Which base model this is: one fingerprint over all that changes what it computes, and nothing else.

weights         rounded to float16, so that the float16 and float32 downloads of one model agree
configurations  of UNet, VAE and text encoders as the loaded model has them (`fingerprint_keys.py` says of each key why)
tokenizers      vocabulary, merges, special tokens, padding, longest text
noise schedule  as numbers; not the choice of sampler

Fingerprints of earlier releases covered the weights, the vocabulary, the prediction type and the VAE's scaling factor alone.
Those of an open base are recognised (`is_base`), and whoever reads one takes the new one in its place.
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
"""The end of every fingerprint of today's rule: it tells them from the old ones, which have the same form."""

MODELS = ("text_encoder", "text_encoder_2", "unet", "vae")
TOKENIZERS = ("tokenizer", "tokenizer_2")
# Below this an alpha is zero: samplers that rescale to zero signal keep another tiny number each, to divide by it.
NO_SIGNAL = 1e-6


@dataclass(frozen=True)
class Fingerprints:
    """What a base is called: today, and under the old rule.

    `rounded`: all its weights are bfloat16 numbers, so this is a copy that has lost bits, and its fingerprint is another one.
    """

    current: str
    legacy: str
    rounded: bool = False


def fingerprints_of(parts: Mapping[str, Any]) -> Fingerprints:
    """Return the fingerprints of a loaded model, in one pass over its weights.

    `parts` are its modules, tokenizers and scheduler by their names in `model_index.json`, the weights as they were stored or
    wider.
    """
    weights, rounded = _weights(parts)
    return Fingerprints(_current(weights.hexdigest(), parts), legacy_fingerprint(weights, parts), rounded)


def legacy_fingerprint(weights: hashlib._Hash, parts: Mapping[str, Any]) -> str:
    """Return the fingerprint by the rule of earlier releases; `weights` has read the weights and nothing else."""
    digest = weights.copy()
    for word, index in sorted(parts["tokenizer"].get_vocab().items()):
        digest.update(f"{word}\0{index}\0".encode())
    prediction, factor = parts["scheduler"].config.prediction_type, float(parts["vae"].config.scaling_factor)
    digest.update(f"{prediction}\0{factor}".encode())
    return digest.hexdigest()


def describe_parts(parts: Mapping[str, Any]) -> dict[str, object]:
    """Return everything but the weights that the fingerprint covers, as JSON can say it."""
    longest = int(_config(parts["text_encoder"])["max_position_embeddings"])
    return {
        **{part: covered_configuration(part, _config(parts[part])) for part in MODELS if part in parts},
        **{part: describe_tokenizer(parts[part], longest) for part in TOKENIZERS if part in parts},
        "noise": noise_schedule(parts["scheduler"]),
    }


def covered_configuration(part: str, config: Mapping[str, Any]) -> dict[str, object]:
    """Return the keys and values of one configuration that the fingerprint covers; 1 and 1.0 are one value."""
    return {key: _plain(value) for key, value in config.items() if covered(part, key)}


def describe_tokenizer(tokenizer: Any, longest: int) -> dict[str, object]:
    """Return what decides which token ids a text becomes; `longest` is the number of positions of the text encoder.

    How CLIP normalises and splits text is code of the library, the same for every base.
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
    """Return the noise that the model was trained on: ᾱ of every step to six digits, what is predicted, whether ᾱ ends at zero.

    Every sampler of one model gives the same. A sampler that has no ᾱ (EDM, flow matching) is described by its class and its
    configuration.
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
    """Return a sampler's class and configuration as JSON can say it: what is recorded while it samples depends on all of it."""
    config = {key: _plain(value) for key, value in scheduler.config.items() if not key.startswith("_")}
    return {"class": type(scheduler).__name__, "config": config}


def is_legacy(fingerprint: str) -> bool:
    """Return whether a fingerprint was made by the old rule."""
    return not fingerprint.endswith(RULE)


def is_base(fingerprint: str, base: Base) -> bool:
    """Return whether a fingerprint, of today's rule or the old one, is that of `base`."""
    return fingerprint in (base.fingerprint, base.legacy_fingerprint)


def why_not(fingerprint: str, base: Base) -> str:
    """Return how the base of another fingerprint differs from `base`, as far as can be told; it begins with "; " or is empty."""
    if base.rounded:
        return (
            f"; the weights of {base.name} are rounded to bfloat16, and such a copy has lost bits: it is another base model than "
            "the float16 or float32 copy, so use one of these"
        )
    if is_legacy(fingerprint):
        return (
            f"; {fingerprint[:12]} is a fingerprint by the old rule, and by that rule {base.name} is "
            f"{base.legacy_fingerprint[:12]}: it is another base model under either"
        )
    if fingerprint == base.bfloat16_fingerprint:
        return (
            f"; {fingerprint[:12]} is a copy of {base.name} whose weights are rounded to bfloat16, which has lost bits and makes "
            "it another base model: the float16 and float32 copies agree"
        )
    return ""


def fingerprint_in_bfloat16(base: Base) -> str:
    """Return the fingerprint that a bfloat16 copy of `base` has; it takes a pass over all weights."""
    parts = {name: part for name in (*MODELS, *TOKENIZERS, "scheduler") if (part := getattr(base, name)) is not None}
    return _current(_weights(parts, torch.bfloat16)[0].hexdigest(), parts)


def text_module_name(name: str) -> str:
    """Return the one name of a text encoder's module: some classes of transformers write `text_model.` before it."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _current(weights: str, parts: Mapping[str, Any]) -> str:
    digest = digest_of_json({"weights": weights, **describe_parts(parts)})
    return digest[: -len(RULE)] + RULE


def _weights(parts: Mapping[str, Any], through: torch.dtype | None = None) -> tuple[hashlib._Hash, bool]:
    """Read all weights, rounded to `through` before they are to float16; and say whether all are bfloat16 numbers.

    The bytes are those of the old rule, so that one pass serves both, and a tensor at a time, so that no copy of the model is
    made: that is why this is not `digests.digest_of_tensors`.
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
    """Return a configuration with its defaults filled in, from diffusers (a mapping) or transformers (an object)."""
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
    """Return ᾱ in float64 from the usual schedules, or else as it was loaded.

    The libraries compute it in float32, where another processor may round otherwise: six digits of a thousand numbers would not
    be the same everywhere. What is computed here counts only if it is what was loaded.
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
