"""Settings by group of layers: text encoder, keys and values, rest of the UNet."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from mos_common.layers import Group


def _numbers(value: Any) -> Any:
    """Return the parts of "3,3,1"; anything else is left for pydantic to judge."""
    return value.split(",") if isinstance(value, str) and "," in value else value


PerGroup = Annotated[float | tuple[float, float, float], BeforeValidator(_numbers)]
"""One number for all groups, or three, in the order of `Group`; "3,3,1" in text."""


def of_group(value: PerGroup, group: Group) -> float:
    """Return the value for one group."""
    return value[list(Group).index(group)] if isinstance(value, tuple) else value


def values_of(value: PerGroup) -> tuple[float, ...]:
    """Return the value of every group, in the order of `Group`."""
    return tuple(of_group(value, group) for group in Group)


def text_of(value: PerGroup) -> str:
    """Return the value as `--set` reads it: "3,3,1" or "2"."""
    return ",".join(f"{each:g}" for each in value) if isinstance(value, tuple) else f"{value:g}"
