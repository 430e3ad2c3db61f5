"""`mos-bench study`: the human study, a page of blind pairs and the tally of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mos_bench.cli import flags
from mos_bench.study.answers import LEAST_CAUGHT
from mos_common.options import Base, Device, Dtype

METHODS = "single,gradient,average,sum-tuned"


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-bench`."""
    study = typer.Typer(no_args_is_help=True, help="Let people judge: a page of blind pairs, and the tally.")
    study.command(epilog="Example: mos-bench study make --methods gradient,average --out build/study")(make)
    study.command(epilog="Example: mos-bench study tally build/study/key.json answers-*.json --csv tally.csv")(tally)
    app.add_typer(study, name="study")


def make(
    out: Annotated[Path, typer.Option("--out", help="A new folder: page/ for raters, key.json for you.")] = Path(
        "build/study"
    ),
    kept: Annotated[
        Path, typer.Option("--bench", help="The --out of mos-bench identity; what is missing there is drawn.")
    ] = Path("build/identity"),
    methods: Annotated[
        str, typer.Option("--methods", help="Two or more of single and the methods of the curve.")
    ] = METHODS,
    pairs: Annotated[int, typer.Option("--pairs", min=1, help="Pairs of pictures for each pair of methods.")] = 20,
    catches: Annotated[
        int, typer.Option("--catches", min=0, help="Catch trials: real pictures, one of another subject.")
    ] = 8,
    count: Annotated[int, typer.Option("--n", min=2, help="Number of fused concepts.")] = 14,
    rank: flags.Rank = 4,
    split: flags.Split = "test",
    prompts: flags.Prompts = None,
    seeds: flags.Seeds = None,
    probed: flags.Probed = None,
    base: Base = "tiny",
    concepts: flags.Concepts = "first",
    tuned: flags.Tuned = None,
    draw_steps: flags.DrawSteps = None,
    device: Device = None,
    dtype: Dtype = None,
    jobs: flags.Jobs = 2,
    helper: flags.Helper = False,
) -> None:
    """Write a page on which people compare drawings without knowing which method drew them."""
    from mos_bench.identity.drawing.protocol import Protocol
    from mos_bench.study.making import StudyOptions, run_make

    options = StudyOptions(
        out=out,
        kept=kept,
        methods=flags.names(methods),
        count=count,
        rank=rank,
        half=split,
        pairs=pairs,
        catches=catches,
        protocol=Protocol().changed(prompts=prompts, seeds=seeds, probed=probed, steps=draw_steps),
        base=base,
        concepts=concepts,
        tuned=tuned,
        device=device,
        dtype=dtype,
    )
    with flags.helpers(0 if helper else jobs - 1):
        run_make(options, helper=helper)


def tally(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="The key.json of the study.")],
    answers: Annotated[list[Path], typer.Argument(metavar="ANSWERS...", help="The files that raters sent.")],
    least: Annotated[
        float,
        typer.Option(
            "--least-caught",
            min=0,
            max=1,
            help="Leave out raters with a smaller share of right answers in catch trials.",
        ),
    ] = LEAST_CAUGHT,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Also write the comparisons to this file.", show_default="not written")
    ] = None,
) -> None:
    """Print how often each method was preferred to each other one, with 95 % intervals."""
    from mos_bench.study.report import run_tally
    from mos_common.shell import say

    say(run_tally(key, answers, least=least, to=csv))
