"""The embedded base model `tiny`: a small, real text-to-image model in Stable Diffusion 1.x layout.

The weights are in `base/` (a diffusers folder), the demonstration concepts in `concepts/`.
`recipe/` made both from the art in it and is not shipped. `LICENSES.md` has the credits. The
product needs only this file, which imports nothing.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
LICENCES = _HERE / "LICENSES.md"


def base_folder() -> Path:
    """Return the diffusers folder of `tiny`."""
    return _HERE / "base"


def adapter_folders() -> dict[str, Path]:
    """Return the folders of the adapters for spatial control, by name."""
    return {name: _HERE / "adapters" / name for name in ("sketch", "keypoints")}


def demo_sketch() -> Path:
    """Return the sketch of the demonstration: a man on the left and a woman on the right."""
    return _HERE / "demo-sketch.png"


def demo_concepts() -> Path:
    """Return the folder of the demonstration concepts: one folder of captioned pictures each."""
    return _HERE / "concepts"
