"""Named choices of the terms of the equation (`solve.py`): identity, or a base that stays itself.

Chosen on development concepts; docs/fusion.md has the front of accuracy against drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mos_server.fusion.per_group import PerGroup, text_of

Preset = Literal["identity", "faithful"]


@dataclass(frozen=True)
class Terms:
    """s, λ and μ of the equation, for all groups of layers or one for each."""

    sharpen: PerGroup
    ridge: PerGroup
    preserve: PerGroup


PRESETS: Mapping[Preset, Terms] = {
    "identity": Terms(sharpen=(1.0, 1.5, 1.25), ridge=0.003, preserve=2.0),
    "faithful": Terms(sharpen=1.0, ridge=0.003, preserve=2.0),
}
"""identity: most of what tells concepts apart. faithful: ordinary prompts move less than by the
average of the LoRAs.
"""


def describe_presets() -> str:
    """Return every preset with its numbers, in one line."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{term} {text_of(value)}" for term, value in vars(terms).items())
        for name, terms in PRESETS.items()
    )
