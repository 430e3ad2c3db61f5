"""A condition as a recipe tells of it: digests of the adapter and the picture, no file's name."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from mos_common.json_models import Sha256, StrictModel
from mos_common.texts import ShownText


class DrawnControl(StrictModel):
    """A condition; `picture` is the digest of its file, and `edges`: of it the edges were read.

    `region` is the number of one of the recipe's, from 1.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    name: Annotated[ShownText, Field(max_length=500)]
    adapter: Sha256
    picture: Sha256
    edges: bool = False
    weight: Annotated[float, Field(ge=0)] = 1.0
    start: Annotated[float, Field(ge=0, le=1)] = 0.0
    end: Annotated[float, Field(ge=0, le=1)] = 1.0
    region: Annotated[int, Field(ge=1, le=64)] | None = None
