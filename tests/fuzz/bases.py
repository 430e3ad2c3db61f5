"""What says how a base computes: the configurations of its folder, and of a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save

from fuzz.reader import Reader
from mos_client.drawing.regions import parse_regions
from mos_common.base_model import load_base
from mos_common.checkpoint_kinds import Kind
from mos_common.checkpoint_schedule import check_latent_scale, has_zero_terminal_snr, prediction_of
from mos_common.safe_reading import Weights, open_weights
from mos_common.single_file_base import ARCHITECTURES
from reference.miniatures import write_miniature

CONFIGURATIONS = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
)


def configuration(name: str, folder: Path) -> Reader:
    """One file of a base's folder."""
    base = write_miniature(folder / "configured")
    good = (base / name).read_bytes()

    def read(file: Path) -> object:
        shutil.copyfile(file, base / name)
        return load_base(str(base), device="cpu").fingerprint

    return Reader(Path(name).name, (good,), read)


def authors_yaml(_folder: Path) -> Reader:
    """The authors' configuration beside a checkpoint."""
    plain = b"model:\n  base_learning_rate: 1.0e-04\n  params:\n    parameterization: v\n    timesteps: 1000\n"
    xl = (
        b"model:\n  params:\n    denoiser_config:\n      params:\n        scaling_config:\n"
        b"          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n"
    )

    def read(file: Path) -> object:
        kind = Kind.XL if b"denoiser" in file.read_bytes() else Kind.TWO
        return prediction_of(file.with_suffix(".ckpt"), kind, Weights({}, {}, {}.__getitem__), None)

    return Reader("model.yaml", (plain, xl), read)


def schedule_tensors(_folder: Path) -> Reader:
    """The tensors and the metadata by which a checkpoint says how it was trained."""
    shipped = ARCHITECTURES / "stable-diffusion-1"
    scheduler = diffusers.PNDMScheduler.from_pretrained(shipped / "scheduler")
    tensors = {"alphas_cumprod": scheduler.alphas_cumprod.clone(), "scale_factor": torch.tensor(0.18215)}
    seeds = (
        save(tensors, {"modelspec.prediction_type": "epsilon"}),
        save({"ztsnr": torch.zeros(0)}, {"modelspec.architecture": "stable-diffusion-v1"}),
    )
    return Reader("model.safetensors", seeds, lambda file: _schedule(file, open_weights(file), shipped))


def schedule_configuration(folder: Path) -> Reader:
    """The configuration of the scheduler in a folder beside a checkpoint."""
    beside = folder / "model.config"
    shutil.copytree(ARCHITECTURES / "stable-diffusion-1", beside)
    config = beside / "scheduler" / "scheduler_config.json"
    good = config.read_bytes()
    alphas = diffusers.PNDMScheduler.from_pretrained(beside / "scheduler").alphas_cumprod
    weights = Weights({"alphas_cumprod": tuple(alphas.shape)}, {}, lambda _name: alphas.clone())

    def read(file: Path) -> object:
        shutil.copyfile(file, config)
        return _schedule(file, weights, beside)

    return Reader(config.name, (good,), read)


def _schedule(file: Path, weights: Weights, folder: Path) -> object:
    check_latent_scale(file, weights, folder)
    return prediction_of(file, Kind.ONE, weights, folder), has_zero_terminal_snr(file, weights, folder)


def region(_folder: Path) -> Reader:
    """A part of a scene: a prompt, and the box in which it is drawn."""
    return Reader("region", (b"<alice/cat> sits @ 0,0,0.5,1",), lambda file: parse_regions([_text(file)]))


def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "surrogateescape")  # as Python reads arguments


MAKERS: Mapping[str, Callable[[Path], Reader]] = {
    **{name.replace("/", "_").removesuffix(".json"): partial(configuration, name) for name in CONFIGURATIONS},
    "schedule_tensors": schedule_tensors,
    "schedule_configuration": schedule_configuration,
    "authors_yaml": authors_yaml,
    "region": region,
}
