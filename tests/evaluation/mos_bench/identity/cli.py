"""The flags of `mos-bench identity` and `mos-bench settings`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mos_common.errors import RequestError
from mos_common.options import Base, Device, Dtype, TuningSteps

Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Processes that share the work, one thread each.")]
Helper = Annotated[bool, typer.Option("--helper", hidden=True, help="Share the work of another process.")]
Tuned = Annotated[Path | None, typer.Option("--tuned", help="Folder of tuned concepts.", show_default="within --out")]
Out = Annotated[Path, typer.Option("--out", help="Output folder; a second run continues from it.")]
Docs = Annotated[
    Path | None,
    typer.Option(
        "--docs", help="Also copy the page, its tables (CSV) and its pictures into DOCS.", show_default="not copied"
    ),
]
Prompts = Annotated[
    int | None,
    typer.Option(
        "--prompts", min=1, max=5, help="Prompts of each of the four kinds, 1 to 5.", show_default="the protocol's"
    ),
]
Seeds = Annotated[
    int | None, typer.Option("--seeds", min=1, help="Drawings of each prompt.", show_default="the protocol's")
]
Probed = Annotated[
    int | None,
    typer.Option(
        "--probed", min=0, help="Concepts scored at each n; 0: all that are fused.", show_default="the protocol's"
    ),
]
DrawSteps = Annotated[
    int | None, typer.Option("--draw-steps", min=1, help="Denoising steps of drawings.", show_default="the protocol's")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting of gradient fusion (mos-server fuse --help lists them); repeatable.",
        show_default="the defaults",
    ),
]
Counts = Annotated[
    str | None, typer.Option("--n", help="Numbers of fused concepts, such as 3,8.", show_default="the protocol's")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-bench`."""
    app.command(epilog="Example: mos-bench identity --quick --out build/identity")(identity)
    app.command(epilog="Example: mos-bench settings --out build/identity")(settings)


def identity(
    out: Out = Path("build/identity"),
    quick: Annotated[bool, typer.Option("--quick", help="n = 3 and 8 only: minutes.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The paper's protocol, every concept: days; resumable.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            help="curve, table1, table2, multi, figure3: parts of the page.",
            show_default="all, or the part of the size",
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="test, or dev to choose settings.")] = "test",
    counts: Counts = None,
    ranks: Annotated[
        str | None, typer.Option("--ranks", help="Ranks of the curve: 4,1.", show_default="the protocol's")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Methods of the curve, such as sum-tuned,gradient.", show_default="all of them"),
    ] = None,
    sets: Sets = None,
    prompts: Prompts = None,
    seeds: Seeds = None,
    probed: Probed = None,
    disjoint: Annotated[
        bool, typer.Option("--disjoint", help="Curve: fuse all disjoint sets of n, and pool their scores.")
    ] = False,
    fused: Annotated[
        int | None,
        typer.Option(
            "--fused", min=1, help="Concepts in the tables' models; the paper has 14.", show_default="the protocol's"
        ),
    ] = None,
    base: Base = "tiny",
    concepts: Annotated[
        Path | None,
        typer.Option(
            "--concepts", help="For another base: folders of pictures.", show_default="the sixty-four of tiny"
        ),
    ] = None,
    tuned: Tuned = None,
    steps: TuningSteps = None,
    draw_steps: DrawSteps = None,
    scorer: Annotated[
        str, typer.Option("--scorer", help="efficientnet, or clip: exactly as in the paper.")
    ] = "efficientnet",
    clip: Annotated[
        Path | None, typer.Option("--clip", help="The folder of CLIP ViT-B/32.", show_default="none")
    ] = None,
    vision: Annotated[
        Path | None,
        typer.Option("--vision", help="Judge identity by this vision model: DINO, faces.", show_default="none"),
    ] = None,
    docs: Docs = None,
    device: Device = None,
    dtype: Dtype = None,
    jobs: Jobs = 2,
    helper: Helper = False,
) -> None:
    """Measure identity, text alignment and drift, with the paper's tables, on unseen concepts."""
    from mos_bench.identity.command import PAPER, Options, run_identity, sized

    of_size, of_ranks, parts, protocol = sized(quick, full)
    how = PAPER if scorer == "clip" else protocol.how
    options = Options(
        out=out,
        parts=tuple(only.split(",")) if only else parts,
        half=split,
        counts=_numbers(counts, "--n") or of_size,
        ranks=_numbers(ranks, "--ranks") or of_ranks,
        protocol=replace(
            protocol,
            prompts=prompts or protocol.prompts,
            seeds=seeds or protocol.seeds,
            probed=protocol.probed if probed is None else probed,
            how=replace(how, steps=draw_steps or how.steps),
        ),
        disjoint=disjoint,
        sets=tuple(sets or ()),
        base=base,
        concepts=concepts,
        tuned=tuned,
        steps=steps,
        scorer=scorer,
        clip=clip,
        vision=vision,
        docs=docs,
        device=device,
        dtype=dtype,
    )
    options = replace(
        options, fused=fused or options.fused, methods=tuple(methods.split(",")) if methods else options.methods
    )
    with helpers(0 if helper else jobs - 1):
        run_identity(options, helper=helper)


def settings(
    out: Out = Path("build/identity"),
    counts: Counts = None,
    prompts: Prompts = None,
    seeds: Seeds = None,
    probed: Probed = None,
    only: Annotated[
        str | None,
        typer.Option(
            "--only", help="Settings to try, such as ridge,preserve,rows,groups,tuning.", show_default="all of them"
        ),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", help="Rank of the tuned concepts: 4 or 1.")] = 4,
    sets: Sets = None,
    split: Annotated[str, typer.Option("--split", help="Settings are chosen on dev.")] = "dev",
    base: Base = "tiny",
    tuned: Tuned = None,
    steps: TuningSteps = None,
    draw_steps: DrawSteps = None,
    docs: Docs = None,
    device: Device = None,
    dtype: Dtype = None,
    jobs: Jobs = 2,
    helper: Helper = False,
) -> None:
    """Measure how each fusion setting changes identity, text alignment and drift, on dev."""
    from mos_bench.identity.concept_drawings import Protocol
    from mos_bench.identity.study import COUNTS, Study, run_study

    protocol = Protocol(prompts=prompts or 1, seeds=seeds or 1, probed=8 if probed is None else probed)
    study = Study(
        out=out,
        half=split,
        counts=_numbers(counts, "--n") or COUNTS,
        only=tuple(only.split(",")) if only else (),
        sets=tuple(sets or ()),
        rank=rank,
        protocol=replace(protocol, how=replace(protocol.how, steps=draw_steps or protocol.how.steps)),
        base=base,
        tuned=tuned,
        steps=steps,
        docs=docs,
        device=device,
        dtype=dtype,
    )
    with helpers(0 if helper else jobs - 1):
        run_study(study, helper=helper)


@contextmanager
def helpers(count: int) -> Iterator[None]:
    """Run the same command line in `count` helper processes, and end them on exit."""
    from mos_bench.processes import Processes

    if not count:
        yield
        return
    with Processes({"OMP_NUM_THREADS": "1"}) as processes:
        for i in range(count):
            processes.start(f"helper {i + 1}", ["mos-bench", *sys.argv[1:], "--helper"])
        yield


def _numbers(text: str | None, flag: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise RequestError(f"{flag} {text}: expected numbers such as 3,8") from error
    if any(number < 1 for number in found):
        raise RequestError(f"{flag} {text}: expected numbers of at least 1")
    return found
