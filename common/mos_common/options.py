"""Options that commands of several programs share: one meaning has one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.flags import SeedType

Base = Annotated[str, typer.Option("--base", help="The base model: `tiny`, a folder, a checkpoint file, or a hub id.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Device to compute on: cpu, cuda, mps.", show_default="the best available"),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Precision: float32, float16, bfloat16.", show_default="what suits the device"),
]
Seed = Annotated[
    int,
    typer.Option("--seed", click_type=SeedType(), help="Random seed, from 0: the same seed gives the same result."),
]
TuningSteps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Optimiser steps.", show_default="the base's preset")
]
SignedBy = Annotated[
    Path | None,
    typer.Option(
        "--kit",
        help="The kit of the federation whose operator must have signed the model.",
        show_default="that of the state folder which the model lies in",
    ),
]
