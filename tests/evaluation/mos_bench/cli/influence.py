"""`mos-bench influence`: what concepts do to each other, and who is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_bench.cli import flags
from mos_common.options import TuningSteps


def register(app: typer.Typer) -> None:
    """Add the command to `mos-bench`."""
    app.command(epilog="Example: mos-bench influence --ranks 4,1 --n 3,8,14,32,64 --out build/influence")(influence)


def influence(
    out: flags.Out = Path("build/influence"),
    counts: Annotated[
        str | None, typer.Option("--n", help="Sizes of honest sets, such as 3,8.", show_default="3,8,14,32,64")
    ] = None,
    ranks: Annotated[str | None, typer.Option("--ranks", help="Ranks of the concepts.", show_default="4,1")] = None,
    each: Annotated[int, typer.Option("--each-n", min=1, help="Random sets at each n.")] = 4,
    attacked: Annotated[
        str | None, typer.Option("--attacked", help="Honest concepts beside an attacker.", show_default="8,14")
    ] = None,
    strengths: Annotated[
        str | None,
        typer.Option(
            "--strengths",
            help="Random changes of the attacker, as shares of each layer's norm.",
            show_default="0.05 to 0.99",
        ),
    ] = None,
    per_half: Annotated[
        int | None,
        typer.Option("--per-half", min=1, help="Use the first concepts of dev and of test.", show_default="all"),
    ] = None,
    sets: flags.Sets = None,
    tuned: flags.Tuned = None,
    steps: TuningSteps = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="Pictures in a tuning step.", show_default="the base's preset"),
    ] = None,
    jobs: flags.Jobs = 2,
    helper: flags.Helper = False,
) -> None:
    """Measure what honest concepts and attackers take from the others, and who is left out."""
    from mos_bench.influence.run import ATTACKED, COUNTS, STRENGTHS, Options, run_influence

    options = Options(
        out=out,
        counts=flags.numbers(counts, "--n") or COUNTS,
        ranks=flags.numbers(ranks, "--ranks") or (4, 1),
        each=each,
        attacked=flags.numbers(attacked, "--attacked") or ATTACKED,
        strengths=flags.shares(strengths, "--strengths") or STRENGTHS,
        per_half=per_half,
        sets=tuple(sets or ()),
        tuned=tuned,
        steps=steps,
        batch=batch,
    )
    with flags.helpers(0 if helper else jobs - 1):
        run_influence(options, helper=helper)
