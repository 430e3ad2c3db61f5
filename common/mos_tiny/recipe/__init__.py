"""The recipe of `tiny`, one command a step, from art to judgement.

`python -m mos_tiny.recipe.art`, `.compose`, `.tokenizer`, `.vae`, `.latents`, `.train`, `.judge`.
"""

from __future__ import annotations

from pathlib import Path


def art_folder() -> Path:
    """Return the folder with the art that the recipe starts from."""
    return Path(__file__).parent / "artwork"
