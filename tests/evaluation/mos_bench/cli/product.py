"""`mos-bench demo`, `teach`, `tuning`, `control`, `several`: the product, and what it can do."""

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
    app.command(epilog="Example: mos-bench control --n 100 --out build/control")(control)
    app.command(epilog="Example: mos-bench several --n 14,32 --out build/several")(several)


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


def control(
    out: flags.Out = Path("build/control"),
    count: Annotated[int, typer.Option("--n", min=2, help="Compositions; each is drawn in four ways.")] = 100,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 20,
    part: flags.Part = 0,
    parts: flags.PartCount = 1,
) -> None:
    """Measure missing objects and attribute binding by prompt, regions, sketch and both."""
    from mos_bench.control import run_control

    run_control(out, count=count, steps=steps, part=part, parts=parts)


def several(
    out: flags.Out = Path("build/several"),
    counts: flags.Counts = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="two, three, one-class, overlap: what is in a picture.", show_default="all of them"
        ),
    ] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=1, help="Pictures of each composition, in each way to draw.")
    ] = 100,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")] = 20,
    tuned: flags.Tuned = None,
    docs: flags.Docs = None,
    jobs: flags.Jobs = 2,
    helper: flags.Helper = False,
) -> None:
    """Count who is recognised of several in a picture: fused, own changes, and by switching."""
    from mos_bench.several.run import Options, run_several

    options = Options(
        out,
        counts=flags.numbers(counts, "--n") or (14,),
        only=flags.names(only),
        pictures=pictures,
        steps=steps,
        tuned=tuned,
        docs=docs,
    )
    with flags.helpers(0 if helper else jobs - 1):
        run_several(options, helper=helper)
