"""The embedded base model `tiny`: a real, small text-to-image diffusion model in the Stable Diffusion 1.x layout.

Weights lie in `base/` (a diffusers folder), three demonstration concepts in `concepts/`, the art that both were made from in
`artwork/`; `LICENSES.md` has its credits. The recipe is one command a step, from art to judgement: `python -m mos_tiny.art`,
`.compose`, `.tokenizer`, `.vae`, `.latents`, `.train`, `.judge`. This file is all that the product needs, and imports nothing.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
LICENCES = _HERE / "LICENSES.md"


def base_folder() -> Path:
    """The diffusers folder of `tiny`."""
    return _HERE / "base"


def demo_concepts() -> Path:
    """The folder with one folder of captioned pictures for each demonstration concept."""
    return _HERE / "concepts"


def art_folder() -> Path:
    """The folder with the art that the recipe starts from."""
    return _HERE / "artwork"
