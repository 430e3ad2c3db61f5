"""The embedded base model `tiny`: a real, small text-to-image diffusion model in the Stable Diffusion 1.x layout.

Weights lie in `base/` (a diffusers folder), three demonstration concepts in `concepts/`; `LICENSES.md` has the credits of the art
that both were made from.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def base_folder() -> Path:
    """The diffusers folder of `tiny`."""
    return _HERE / "base"


def demo_concepts() -> Path:
    """The folder with one folder of captioned pictures for each demonstration concept."""
    return _HERE / "concepts"
