"""What a checkpoint predicts is said by the file or beside it, or it is a question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from mos_common.checkpoint_kinds import Kind
from mos_common.checkpoint_schedule import check_latent_scale, has_zero_terminal_snr, prediction_of
from mos_common.errors import BaseModelError
from mos_common.fingerprint import noise_schedule
from mos_common.safe_reading import Weights
from mos_common.single_file_base import ARCHITECTURES, _shipped, _zero_terminal_snr

V = "v_prediction"
# The relevant lines of the configurations that Stability AI publishes beside its checkpoints.
YAML_V = 'model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    parameterization: "v"\n'
YAML_2 = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    linear_start: 0.00085\n"
YAML_XL = (
    "model:\n  params:\n    denoiser_config:\n      params:\n        scaling_config:\n"
    "          target: sgm.modules.diffusionmodules.denoiser_scaling.{}\n"
)
ONE, TWO, XL = Kind.ONE, Kind.TWO, Kind.XL


def weights(metadata: dict[str, str] | None = None, **tensors: torch.Tensor) -> Weights:
    return Weights({name: tuple(t.shape) for name, t in tensors.items()}, metadata or {}, tensors.__getitem__)


def configured(folder: Path, prediction: str) -> Path:
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": prediction}))
    return folder


@pytest.mark.parametrize(
    ("kind", "metadata", "tensors", "yaml", "expected"),
    [
        (ONE, {}, (), "", "epsilon"),
        (XL, {}, (), "", "epsilon"),
        (XL, {}, ("v_pred", "ztsnr"), "", V),
        (ONE, {"modelspec.prediction_type": "v"}, (), "", V),
        (TWO, {"modelspec.prediction_type": "epsilon"}, (), "", "epsilon"),
        (TWO, {"modelspec.prediction_type": "V_Prediction"}, (), "", V),
        (TWO, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, (), "", V),
        (TWO, {"modelspec.architecture": "stable-diffusion-v2-512"}, (), "", "epsilon"),
        (ONE, {"modelspec.architecture": "stable-diffusion-v1"}, (), "", "epsilon"),
        (TWO, {}, (), YAML_V, V),
        (TWO, {}, (), YAML_2, "epsilon"),
        (TWO, {}, (), "model: {params: {parameterization: v}}", V),
        (TWO, {}, (), "model: {params: {parameterization: eps}}", "epsilon"),
        (XL, {}, (), YAML_XL.format("VScaling"), V),
        (XL, {}, (), YAML_XL.format("EpsScaling"), "epsilon"),
        (TWO, {"modelspec.prediction_type": "v"}, (), YAML_V, V),
    ],
)
def test_each_source_is_read(tmp_path, kind, metadata, tensors, yaml, expected):
    if yaml:
        (tmp_path / "sd.yaml").write_text("\ufeff" + yaml, encoding="utf-8")
    held = weights(metadata, **dict.fromkeys(tensors, torch.zeros(0)))
    assert prediction_of(tmp_path / "sd.safetensors", kind, held, None) == expected


def test_a_folder_of_configurations_says_it(tmp_path):
    assert prediction_of(tmp_path / "sd.ckpt", TWO, weights(), configured(tmp_path / "sd.config", V)) == V


def test_stable_diffusion_2_without_a_word_is_a_question(tmp_path):
    """Both kinds are common, and their tensors are alike."""
    with pytest.raises(BaseModelError) as error:
        prediction_of(tmp_path / "v2-1.safetensors", TWO, weights({"modelspec.title": "mine"}), None)
    said = str(error.value)
    assert "epsilon (the 512-pixel models) or v (the 768-pixel models)" in said
    (tmp_path / "v2-1.yaml").write_text(
        said[said.index("model: {") : said.index(" (or eps)")]
    )  # what it tells us to do
    assert prediction_of(tmp_path / "v2-1.safetensors", TWO, weights(), None) == V


@pytest.mark.parametrize(
    ("metadata", "tensors", "yaml"),
    [
        ({"modelspec.prediction_type": "epsilon"}, (), YAML_V),
        ({"modelspec.prediction_type": "epsilon", "modelspec.architecture": "stable-diffusion-v2-768-v"}, (), ""),
        ({}, ("v_pred",), YAML_2),
    ],
)
def test_two_that_disagree_are_both_named(tmp_path, metadata, tensors, yaml):
    if yaml:
        (tmp_path / "sd.yaml").write_text(yaml)
    held = weights(metadata, **dict.fromkeys(tensors, torch.zeros(0)))
    with pytest.raises(BaseModelError, match=r"says epsilon.*says v_prediction|says v_prediction.*says epsilon"):
        prediction_of(tmp_path / "sd.safetensors", TWO, held, None)


def test_another_prediction_is_refused_by_name(tmp_path):
    with pytest.raises(BaseModelError, match=r"modelspec.prediction_type says that its UNet predicts 'x0'"):
        prediction_of(tmp_path / "sd.ckpt", ONE, weights({"modelspec.prediction_type": "x0"}), None)


@pytest.mark.parametrize("content", ["", "- a list", "model: 3", "other: {}", "a: [", "\x00"])
def test_a_yaml_that_is_no_configuration_is_named(tmp_path, content):
    (tmp_path / "sd.yaml").write_text(content)
    with pytest.raises(BaseModelError, match=r"sd\.yaml, beside the checkpoint, is not a configuration"):
        prediction_of(tmp_path / "sd.safetensors", ONE, weights(), None)


def alphas(end: float = 0.012) -> torch.Tensor:
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, end**0.5, 1000, dtype=torch.float64) ** 2, 0)


def test_the_file_s_own_noise_schedule_must_be_that_of_its_kind(tmp_path):
    file, folder = tmp_path / "sd.safetensors", ARCHITECTURES / "stable-diffusion-1"
    for dtype in (torch.float16, torch.float32):
        assert not has_zero_terminal_snr(file, weights(alphas_cumprod=alphas().to(dtype)), folder)
    for other in (alphas(0.02), alphas()[:500]):
        with pytest.raises(BaseModelError, match=r"another noise schedule .*folder sd\.config beside it"):
            has_zero_terminal_snr(file, weights(alphas_cumprod=other), folder)


def test_a_schedule_of_more_steps_than_any_model_has_is_refused_before_it_is_computed(tmp_path):
    """A hundred million steps take nine gigabytes."""
    folder = configured(tmp_path, "epsilon")
    written = {"_class_name": "DDIMScheduler", "num_train_timesteps": 10**8}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(written))
    with pytest.raises(BaseModelError, match="num_train_timesteps of its scheduler is 100000000, expected a whole"):
        has_zero_terminal_snr(tmp_path / "a", weights(alphas_cumprod=torch.ones(3)), folder)


def test_zero_terminal_snr_is_seen_by_its_mark_and_by_the_schedule(tmp_path):
    file, folder = tmp_path / "sd.safetensors", ARCHITECTURES / "stable-diffusion-xl"
    shifted = alphas()
    shifted[-1] = 0
    assert has_zero_terminal_snr(file, weights(ztsnr=torch.zeros(0)), folder)
    assert has_zero_terminal_snr(file, weights(alphas_cumprod=shifted), folder)
    scheduler = EulerDiscreteScheduler.from_pretrained(
        folder / "scheduler", prediction_type=V, **_zero_terminal_snr(file, folder)
    )
    assert noise_schedule(scheduler)["zero signal"] and noise_schedule(scheduler)["prediction"] == V


def test_zero_terminal_snr_that_a_scheduler_cannot_draw_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match=r"zero terminal SNR.*folder sd\.config"):
        _zero_terminal_snr(tmp_path / "sd.safetensors", ARCHITECTURES / "stable-diffusion-1")


def test_the_scale_of_latents_must_be_that_of_its_kind(tmp_path):
    folder = ARCHITECTURES / "stable-diffusion-xl"
    check_latent_scale(tmp_path / "xl.ckpt", weights(scale_factor=torch.tensor(0.13025).half()), folder)
    with pytest.raises(BaseModelError, match=r"scales latents by 0\.18\d+, its configurations by 0\.13025"):
        check_latent_scale(tmp_path / "xl.ckpt", weights(scale_factor=torch.tensor(0.18215)), folder)


@pytest.mark.parametrize(
    ("kind", "prediction", "size"),
    [(ONE, "epsilon", 64), (ONE, V, 64), (TWO, "epsilon", 64), (TWO, V, 96), (XL, "epsilon", 128), (XL, V, 128)],
)
def test_the_shipped_configurations_have_the_published_sizes(kind, prediction, size):
    """512 pixels for 1.x and 2 base, 768 for 2 with v-prediction, 1024 for XL; eight a latent."""
    config = json.loads((ARCHITECTURES / _shipped(kind, prediction) / "unet" / "config.json").read_text())
    assert config["sample_size"] == size
