"""`mos-bench`: the demo and the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_bench.identity.cli import register
from mos_common.shell import add_version, run

app = typer.Typer(
    name="mos-bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the whole product once, or measure it.",
)
add_version(app)


@app.command(epilog="Example: mos-bench demo --out build/demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Output folder; its earlier content is removed.")] = Path(
        "build/demo"
    ),
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimiser steps per concept; default: the base's preset.")
    ] = None,
) -> None:
    """Run three participants, one round and one picture with the real commands.

    Every command is a process of its own, and they talk over TLS on loopback.
    """
    from mos_bench.demo import run_demo

    run_demo(out, steps=steps)


@app.command(epilog="Example: mos-bench teach --each 4 --out build/teach")
def teach(
    out: Annotated[Path, typer.Option("--out", help="Folder of concepts and scores; existing ones are kept.")] = Path(
        "build/teach"
    ),
    each: Annotated[int, typer.Option("--each", min=1, help="Identities of each of three kinds.")] = 4,
    base: Annotated[str, typer.Option("--base", help="`tiny`, or a diffusers folder of the same world.")] = "tiny",
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps; default: the base's preset.")] = None,
    part: Annotated[
        int, typer.Option("--part", min=0, help="The share of the work that this process does, from 0.")
    ] = 0,
    parts: Annotated[int, typer.Option("--parts", min=1, help="Number of processes that share the work.")] = 1,
) -> None:
    """Tune identities that the base never saw, and score their drawings."""
    from mos_bench.teach import run_teach

    run_teach(out, each=each, base=base, steps=steps, part=part, parts=parts)


@app.command(epilog="Example: mos-bench tuning --each 4 --out build/tuning")
def tuning(
    out: Annotated[Path, typer.Option("--out", help="Folder of scores and tables; existing ones are kept.")] = Path(
        "build/tuning"
    ),
    each: Annotated[int, typer.Option("--each", min=1, help="Identities of each of three kinds.")] = 4,
    base: Annotated[str, typer.Option("--base", help="`tiny`, or a diffusers folder of the same world.")] = "tiny",
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="A change by its name in the table; repeat it.", show_default="all of them"),
    ] = None,
    part: Annotated[
        int, typer.Option("--part", min=0, help="The share of the work that this process does, from 0.")
    ] = 0,
    parts: Annotated[int, typer.Option("--parts", min=1, help="Number of processes that share the work.")] = 1,
) -> None:
    """Measure how each tuning setting changes identity and prompt-following (docs/tuning.md)."""
    import torch

    from mos_bench.tuning import measure

    torch.set_num_threads(1 if parts > 1 else 2)
    measure(out, each=each, base_name=base, only=only or [], part=part, parts=parts)


register(app)


def main() -> None:
    """Run the `mos-bench` command."""
    run(app)
