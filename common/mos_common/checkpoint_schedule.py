"""The prediction type and noise schedule of a checkpoint: read in or beside it, never guessed.

A checkpoint's tensors do not show whether its UNet predicts the noise or v. These say it:

    NAME.config/scheduler           a folder of configurations beside the file
    NAME.yaml                       its authors' configuration: model.params.parameterization
    modelspec.prediction_type       metadata, and modelspec.architecture for 2.x
    v_pred, ztsnr                   empty tensors that mark v-prediction and zero terminal SNR

Stable Diffusion 1.x and XL predict the noise unless one of them says otherwise; of 2.x both kinds
are common, so one of them must say it. Two that disagree are an error.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from mos_common.base_configuration import defaults_of, judge_counts
from mos_common.checkpoint_kinds import Kind
from mos_common.errors import BaseModelError
from mos_common.libraries import first_line, quiet_libraries
from mos_common.safe_reading import Weights
from mos_common.samplers import scheduler_class
from mos_common.text_files import read_text_file

EPSILON, V = "epsilon", "v_prediction"
PREDICTIONS = {"epsilon": EPSILON, "eps": EPSILON, "v": V, "v_prediction": V, "v-prediction": V}
ARCHITECTURES = {"stable-diffusion-v2-512": EPSILON, "stable-diffusion-v2-768-v": V}
XL_SCALINGS = {"EpsScaling": EPSILON, "VScaling": V}
# Authors' configurations have 2 to 5 kB and 20 brackets; PyYAML takes the square of their number.
MOST_YAML_BYTES, MOST_BRACKETS = 16 << 10, 200
NO_SIGNAL = 1e-4  # of ᾱ; without zero terminal SNR Stable Diffusion ends at 4.7e-3
ALIKE = 1e-2  # of ᾱ, relative: files in half precision have three digits


def prediction_of(path: Path, kind: Kind, weights: Weights, beside: Path | None) -> str:
    """Return "epsilon" or "v_prediction"; `beside` is the folder of configurations, if any.

    Raises:
        BaseModelError: nothing says it, or two sources disagree, or one says something else.

    """
    said: dict[str, str] = {}
    if beside is not None:
        scheduler = beside / "scheduler" / "scheduler_config.json"
        said[str(scheduler)] = str(_json(scheduler).get("prediction_type", EPSILON))
    yaml = path.with_suffix(".yaml")
    if yaml.is_file():
        said[str(yaml)] = _of_yaml(yaml, kind)
    for key, values in (("modelspec.prediction_type", PREDICTIONS), ("modelspec.architecture", ARCHITECTURES)):
        value = str(weights.metadata.get(key, ""))
        if key == "modelspec.architecture":
            value = value.partition("/")[0]  # stable-diffusion-v2-768-v/lora
            if value not in values:
                continue
        if value:
            said[f"its metadata {key}"] = values.get(value.lower(), value)
    if "v_pred" in weights.shapes:
        said["its tensor v_pred"] = V
    return _agreed(path, kind, said)


def has_zero_terminal_snr(path: Path, weights: Weights, folder: Path) -> bool:
    """Return whether the checkpoint's noise ends at zero signal, by `ztsnr` or its own schedule.

    Raises:
        BaseModelError: the file holds another noise schedule than its configurations, or none that
            can be read.

    """
    if "alphas_cumprod" not in weights.shapes:
        return "ztsnr" in weights.shapes
    alphas, expected = weights.read("alphas_cumprod"), _alphas(folder)
    if alphas.ndim != 1 or not len(alphas) or alphas.is_complex():
        raise BaseModelError(
            f"{path} has alphas_cumprod of {str(alphas.dtype).removeprefix('torch.')} {tuple(alphas.shape)}: expected "
            "the numbers of a noise schedule in a row. Download it again"
        )
    alphas = alphas.double()
    if alphas[-1] < NO_SIGNAL:
        return True
    if expected is not None and (
        alphas.shape != expected.shape or not torch.allclose(alphas, expected, rtol=ALIKE, atol=0)
    ):
        raise BaseModelError(
            f"{path} was trained with another noise schedule than {folder / 'scheduler'} says (alphas_cumprod): "
            f"give its own configurations in the folder {path.with_suffix('.config').name} beside it"
        )
    return "ztsnr" in weights.shapes


def check_latent_scale(path: Path, weights: Weights, folder: Path) -> None:
    """Check the factor between latents and the VAE's numbers, if the file holds it.

    Raises:
        BaseModelError: it is not that of the configurations, or no number.

    """
    if "scale_factor" not in weights.shapes:
        return
    factor, file = weights.read("scale_factor"), folder / "vae" / "config.json"
    expected = _json(file).get("scaling_factor", 0.18215)
    if factor.numel() != 1 or factor.is_complex():
        raise BaseModelError(f"{path} has a scale_factor of {factor.numel()} numbers: expected one. Download it again")
    if not isinstance(expected, int | float) or not math.isfinite(expected):
        raise BaseModelError(f"{file} has the scaling_factor {str(expected)[:60]!r}: expected a number")
    found = float(factor)
    if abs(found - expected) > ALIKE * expected:
        raise BaseModelError(
            f"{path} scales latents by {found:g}, its configurations by {expected:g}: "
            f"give its own in the folder {path.with_suffix('.config').name} beside it"
        )


def _agreed(path: Path, kind: Kind, said: dict[str, str]) -> str:
    values = set(said.values())
    if len(values) > 1:
        listed = "; ".join(f"{source} says {value}" for source, value in said.items())
        raise BaseModelError(f"{path}: what its UNet predicts is said twice, and differently: {listed}. Correct one")
    if values - {EPSILON, V}:
        source, value = next(iter(said.items()))
        raise BaseModelError(f"{path}: {source} says that its UNet predicts {value!r}; we know epsilon and v")
    if values:
        return values.pop()
    if kind is Kind.TWO:
        raise BaseModelError(
            f"{path} is a checkpoint of {kind.value}, and nothing says whether it predicts epsilon (the 512-pixel "
            f"models) or v (the 768-pixel models): put the configuration it came with beside it as "
            f"{path.with_suffix('.yaml').name}, or write that file with one line, "
            "model: {params: {parameterization: v}} (or eps)"
        )
    return EPSILON


def _of_yaml(file: Path, kind: Kind) -> str:
    """Return what the authors' configuration says; their default is to predict the noise."""
    import yaml

    try:
        text = read_text_file(file, most=MOST_YAML_BYTES)
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise ValueError(f"it has more than {MOST_BRACKETS} lists and objects")
        # A few references to references write out to gigabytes; no authors' configuration has one.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it has references")
        params = yaml.safe_load(text)["model"]["params"]
        if kind is Kind.XL and "denoiser_config" in params:
            scaling = str(params["denoiser_config"]["params"]["scaling_config"]["target"]).rpartition(".")[2]
            return XL_SCALINGS.get(scaling, scaling)
        value = str(params.get("parameterization", "eps"))
        return PREDICTIONS.get(value.lower(), value)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise BaseModelError(
            f"{file}, beside the checkpoint, is not a configuration of Stable Diffusion (no model.params): "
            "correct or remove it"
        ) from error


def _alphas(folder: Path) -> torch.Tensor | None:
    """Return the noise schedule of configurations, or None if their scheduler has none.

    Raises:
        BaseModelError: there is no such scheduler, or it does not take its settings.

    """
    file = folder / "scheduler" / "scheduler_config.json"
    written = _json(file)
    scheduler = scheduler_class(str(folder), str(written.get("_class_name")))
    judge_counts(str(folder), "scheduler", defaults_of(scheduler) | written)
    with quiet_libraries():
        try:
            alphas = getattr(scheduler.from_pretrained(folder / "scheduler"), "alphas_cumprod", None)
        except Exception as error:  # schedulers raise anything at all for settings that are not theirs
            raise BaseModelError(f"{file} is not the configuration of a scheduler: {first_line(error)}") from error
    return alphas.double() if isinstance(alphas, torch.Tensor) else None


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BaseModelError(f"{file} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise BaseModelError(f"{file} is not a configuration: it holds a {type(content).__name__}")
    return content
