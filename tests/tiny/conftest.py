"""The tiny world, the wider one, and the embedded autoencoder."""

from __future__ import annotations

import pytest
from diffusers import AutoencoderKL

from mos_tiny import base_folder
from mos_tiny.recipe.art import load_art
from mos_tiny.recipe.compose import World


@pytest.fixture(scope="session")
def world():
    return World()


@pytest.fixture(scope="session")
def widened():
    return World(wider=load_art("wider"))


@pytest.fixture
def vae():
    return AutoencoderKL.from_pretrained(base_folder() / "vae", low_cpu_mem_usage=False).float()
