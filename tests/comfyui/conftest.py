"""The file of ComfyUI's nodes, and a model to draw with."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "deploy" / "comfyui" / "mix_of_show.py"


@pytest.fixture(scope="session")
def nodes() -> ModuleType:
    """The module, loaded as ComfyUI loads a file of `custom_nodes/`."""
    spec = spec_from_file_location("mix_of_show_nodes", FILE)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model(tiny, published) -> Path:
    """A model of two concepts on `tiny`, with their own changes beside."""
    return published(tiny, "<cat>", "<dog>")
