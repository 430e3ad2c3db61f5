"""Arguments and options that several `mos-client` commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Images = Annotated[
    Path, typer.Argument(help="Folder with the pictures of one concept; captions in name.txt beside name.png.")
]
Concept = Annotated[str, typer.Option("--concept", help='Its name in prompts, like "<cat>".')]
ClassWord = Annotated[str, typer.Option("--class", help="The kind of thing it is: cat, person, car.")]
Mark = Annotated[
    str | None,
    typer.Option(
        "--mark", help="The word that stands for it in captions, such as sks.", show_default="V, TOK or its <name>"
    ),
]
Author = Annotated[
    str, typer.Option("--author", help="Your name, written into the concept file.", show_default="nobody")
]
Licence = Annotated[
    str,
    typer.Option(
        "--licence", help="Licence that you share the concept under, written into the file.", show_default="none"
    ),
]
ConceptOut = Annotated[
    Path | None, typer.Option("--out", help="The concept file to write.", show_default="NAME.safetensors here")
]
Base = Annotated[str, typer.Option("--base", help="The base model: `tiny`, a diffusers folder, or a hub id.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Device to compute on: cpu, cuda, mps.", show_default="the best available"),
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Precision: float32, float16, bfloat16.", show_default="what suits the device"),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimiser steps.", show_default="the base's preset")]
Seed = Annotated[int, typer.Option("--seed", help="Random seed: the same seed gives the same result.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting listed below; repeatable. Overrides a flag of the same name.",
        show_default="as listed",
    ),
]
Vram = Annotated[
    float | None,
    typer.Option(
        "--vram", min=0.1, help="Gigabytes of memory that a step may use.", show_default="what the GPU has free"
    ),
]
