"""Options of `mos-client draw` that are about pictures and what their files say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Again = Annotated[
    Path | None,
    typer.Option("--again", help="Draw this picture again, by the recipe in it.", show_default="a new picture"),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        help='A picture to follow, "ADAPTER: PICTURE", by a T2I-Adapter or ControlNet folder, or on tiny by sketch or '
        'keypoints; "... @ weight=0.8, start=0, end=0.6, region=2, make=edges" is how. Repeatable.',
        show_default="the scene's, or none",
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        "--count", help="Pictures in one batch, of the seeds that follow; --out is their sheet.", show_default="1"
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option("--seeds", help='The same for seeds of your choice: "0-7", "1,5,20-22".', show_default="--seed alone"),
]
PreviewTo = Annotated[
    Path | None,
    typer.Option("--preview", help="A picture that shows the drawing on its way, renewed.", show_default="no preview"),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--certificate", help="Sign Content Credentials (C2PA) with this chain (PEM).", show_default="unsigned"
    ),
]
PrivateKey = Annotated[
    Path | None, typer.Option("--private-key", help="The key of --certificate (PEM).", show_default="none")
]
