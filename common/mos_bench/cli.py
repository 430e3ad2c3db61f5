"""`mos-bench`: the demo and the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_common.shell import run

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="The demo and the measurements."
)


@app.callback()
def bench() -> None:
    """Run the whole product once, or measure it."""


@app.command(epilog="Example: mos-bench demo --out build/demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Everything is written here; what was here is removed.")] = Path(
        "build/demo"
    ),
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimiser steps per concept; default: the base's preset.")
    ] = None,
) -> None:
    """Three participants, one round, one picture: the real commands as real processes over TLS on loopback."""
    from mos_bench.demo import run_demo

    run_demo(out, steps=steps)


def main() -> None:
    """The `mos-bench` command."""
    run(app)
