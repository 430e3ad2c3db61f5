"""`mos-bench demo`, `teach` and `tuning`: the whole product once, and tuning measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_bench.cli import flags
from mos_common.options import TuningSteps


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-bench`."""
    app.command(epilog="Example: mos-bench demo --out build/demo")(demo)
    app.command(epilog="Example: mos-bench teach --each 4 --out build/teach")(teach)
    app.command(epilog="Example: mos-bench tuning --each 4 --out build/tuning")(tuning)


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


def teach(
    out: flags.Out = Path("build/teach"),
    each: flags.Each = 4,
    base: flags.SameWorld = "tiny",
    steps: TuningSteps = None,
    part: flags.Part = 0,
    parts: flags.PartCount = 1,
) -> None:
    """Tune identities that the base never saw, and score their drawings."""
    from mos_bench.teach import run_teach

    run_teach(out, each=each, base=base, steps=steps, part=part, parts=parts)


def tuning(
    out: flags.Out = Path("build/tuning"),
    each: flags.Each = 4,
    base: flags.SameWorld = "tiny",
    only: flags.Variants = None,
    part: flags.Part = 0,
    parts: flags.PartCount = 1,
) -> None:
    """Measure how each tuning setting changes identity and prompt-following (docs/tuning.md)."""
    from mos_bench.tuning import run_tuning

    run_tuning(out, each=each, base=base, only=only or [], part=part, parts=parts)
