"""The recipe of `tiny`: one command for each step, from the art to the measured base.

`python -m mos_tiny.recipe.art`, `.compose`, `.tokenizer`, `.vae`, `.latents`, `.train`, `.judge`.
"""

from __future__ import annotations

from pathlib import Path


def art_folder() -> Path:
    """Return the folder with the art that the recipe starts from."""
    return Path(__file__).parent / "artwork"
