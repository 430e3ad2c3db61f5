"""The embedded base model `tiny`: a real, small text-to-image diffusion model in the Stable Diffusion 1.x layout.

Weights lie in `base/` (a diffusers folder), three demonstration concepts in `concepts/`. The recipe that made them, with the art
it starts from, is `recipe/`, which is not shipped; `LICENSES.md` has the credits. This file is all that the product needs, and
it imports nothing.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
LICENCES = _HERE / "LICENSES.md"


def base_folder() -> Path:
    """Return the diffusers folder of `tiny`."""
    return _HERE / "base"


def demo_concepts() -> Path:
    """Return the folder that has one folder of captioned pictures for each demonstration concept."""
    return _HERE / "concepts"
