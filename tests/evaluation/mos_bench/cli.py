"""`mos-bench`: the demo and the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_bench.identity.cli import Out, register
from mos_common.options import TuningSteps
from mos_common.shell import add_version, run

app = typer.Typer(
    name="mos-bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Run the whole product once, or measure it.",
)
add_version(app)

Each = Annotated[int, typer.Option("--each", min=1, help="Identities of each of three kinds.")]
SameWorld = Annotated[
    str, typer.Option("--base", help="The base model: `tiny`, or a diffusers folder of the same world.")
]
Part = Annotated[int, typer.Option("--part", min=0, help="The share of the work that this process does, from 0.")]
Parts = Annotated[int, typer.Option("--parts", min=1, help="Number of processes that share the work.")]


@app.command(epilog="Example: mos-bench demo --out build/demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Output folder; its earlier content is removed.")] = Path(
        "build/demo"
    ),
    steps: TuningSteps = None,
) -> None:
    """Run three participants, one round and one picture with the real commands.

    Every command is a process of its own, and they talk over TLS on loopback.
    """
    from mos_bench.demo import run_demo

    run_demo(out, steps=steps)


@app.command(epilog="Example: mos-bench teach --each 4 --out build/teach")
def teach(
    out: Out = Path("build/teach"),
    each: Each = 4,
    base: SameWorld = "tiny",
    steps: TuningSteps = None,
    part: Part = 0,
    parts: Parts = 1,
) -> None:
    """Tune identities that the base never saw, and score their drawings."""
    from mos_bench.teach import run_teach

    run_teach(out, each=each, base=base, steps=steps, part=part, parts=parts)


@app.command(epilog="Example: mos-bench tuning --each 4 --out build/tuning")
def tuning(
    out: Out = Path("build/tuning"),
    each: Each = 4,
    base: SameWorld = "tiny",
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="A change by its name in the table; repeat it.", show_default="all of them"),
    ] = None,
    part: Part = 0,
    parts: Parts = 1,
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
