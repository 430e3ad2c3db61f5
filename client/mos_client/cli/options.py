"""Arguments and options that several `mos-client` commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mos_common.flags import FiniteType


class Own(StrEnum):
    """Whether concepts are drawn by their own spatial changes."""

    AUTO = "auto"
    OFF = "off"


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
        "--vram",
        click_type=FiniteType(0.1),
        help="Gigabytes of memory that a step may use.",
        show_default="what the GPU has free",
    ),
]
