"""Fused models and bases to export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mos_common.base_model import Base, load_base
from mos_common.edlora import LowRank
from mos_common.exporting.export import ExportOptions, export
from mos_common.fused_model import FusedModel, NamedConcept
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.average import AverageSettings
from mos_server.models.publish import write_fused


@pytest.fixture
def fused(tiny, make_concept) -> FusedModel:
    concepts = [
        NamedConcept("alice", make_concept(tiny, "<cat>", seed=1, author="Alice", licence="CC0")),
        NamedConcept("bob", make_concept(tiny, "<dog>", seed=2, rank=3)),
    ]
    return fuse(tiny, concepts, AverageSettings())


@pytest.fixture
def folder(fused, tmp_path) -> Path:
    """The folder of `fused`."""
    write_fused(fused, tmp_path / "fused")
    return tmp_path / "fused"


@pytest.fixture
def mixed(make_concept, tmp_path) -> Callable[..., Path]:
    """Write a fused model in which one concept changes every adaptable layer, in ranks 1 to 3."""

    def folder(base) -> Path:
        g, everything = torch.Generator().manual_seed(5), {}
        for i, layer in enumerate(base.layout.layers):
            rank, size = 1 + i % 3, float(layer.module.weight.float().std())
            A, B = torch.randn(rank, layer.d_in, generator=g), 0.3 * size * torch.randn(layer.d_out, rank, generator=g)
            everything[layer.name] = LowRank(A, B, 2.0)
        cat = dataclasses.replace(make_concept(base, "<cat>", seed=1, licence="CC0"), pairs=everything)
        concepts = [NamedConcept("alice", cat), NamedConcept("bob", make_concept(base, "<dog>", seed=2, rank=3))]
        write_fused(fuse(base, concepts, AverageSettings()), tmp_path / "fused")
        return tmp_path / "fused"

    return folder


@pytest.fixture
def quickly() -> Callable[..., list[str]]:
    """Export with the mean of the words, which needs no fit: `quickly(source, base, kind, out)`."""

    def write(source: Path, base: Base, kind: str | None, out: Path, dtype: str | None = None, **more) -> list[str]:
        fit = None if kind == "diffusers" and not more.get("test") else "mean"
        return export(source, base, out, ExportOptions(kind, dtype, **{"fit": fit, **more}))

    return write


@pytest.fixture(scope="session")
def folder_of_2(random_base_folder, tmp_path_factory) -> Path:
    """A random model laid out like Stable Diffusion 2.1, which predicts v."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(random_base_folder(), safety_checker=None)
    text = type(pipeline.text_encoder.config)(**{**pipeline.text_encoder.config.to_dict(), "hidden_act": "gelu"})
    unet = UNet2DConditionModel.from_config({**pipeline.unet.config, "use_linear_projection": True})
    noise = {name: pipeline.scheduler.config[name] for name in ("beta_start", "beta_end", "beta_schedule")}
    more = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
    steps = DDIMScheduler(**noise, **more, prediction_type="v_prediction")
    parts = {**pipeline.components, "text_encoder": CLIPTextModel(text), "unet": unet, "scheduler": steps}
    to = tmp_path_factory.mktemp("like-2.1")
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(to)
    return to


@pytest.fixture(scope="session")
def like_2(folder_of_2) -> Base:
    """The model in `folder_of_2`."""
    return load_base(str(folder_of_2), device="cpu")
