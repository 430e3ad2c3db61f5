"""What both sides share. To draw from Python: `from mos_common import MixOfShow`.

The names below are imported when they are first asked for, so `import mos_common` loads neither
torch nor diffusers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mos_common.base_model import load_base
    from mos_common.concept_file import read_concept
    from mos_common.drawing import Drawing, draw
    from mos_common.edlora import attached
    from mos_common.fused_model import read_fused
    from mos_common.pictures import save_picture
    from mos_common.pipeline.mix_of_show import MixOfShow
    from mos_common.region_texts import mask_of
    from mos_common.regions import Region
    from mos_common.shapes import Box, Mask

__all__ = [
    "Box",
    "Drawing",
    "Mask",
    "MixOfShow",
    "Region",
    "attached",
    "draw",
    "load_base",
    "mask_of",
    "read_concept",
    "read_fused",
    "save_picture",
]

_MODULES = {
    "Box": "shapes",
    "Drawing": "drawing",
    "Mask": "shapes",
    "MixOfShow": "pipeline.mix_of_show",
    "Region": "regions",
    "attached": "edlora",
    "draw": "drawing",
    "load_base": "base_model",
    "mask_of": "region_texts",
    "read_concept": "concept_file",
    "read_fused": "fused_model",
    "save_picture": "pictures",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names beside the module's own."""
    return sorted({*globals(), *__all__})
