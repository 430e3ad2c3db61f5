"""The flags of the measurements, and helper processes that share their work."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mos_common.errors import RequestError

# Of every measurement
Docs = Annotated[
    Path | None,
    typer.Option(
        "--docs", help="Also copy the page, its tables (CSV) and its pictures into DOCS.", show_default="not copied"
    ),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Processes that share the work, one thread each.")]
Helper = Annotated[bool, typer.Option("--helper", hidden=True, help="Share the work of another process.")]
Out = Annotated[Path, typer.Option("--out", help="Output folder; a second run continues from it.")]
Tuned = Annotated[Path | None, typer.Option("--tuned", help="Folder of tuned concepts.", show_default="within --out")]
Counts = Annotated[
    str | None, typer.Option("--n", help="Numbers of fused concepts, such as 3,8.", show_default="the protocol's")
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

# Of the protocol
Prompts = Annotated[
    int | None,
    typer.Option(
        "--prompts", min=1, max=8, help="Prompts of each of the four kinds, 1 to 8.", show_default="the protocol's"
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

# Of `mos-bench identity`
Quick = Annotated[bool, typer.Option("--quick", help="n = 3 and 8 only: minutes.")]
Full = Annotated[bool, typer.Option("--full", help="The paper's protocol, every concept: days; resumable.")]
Parts = Annotated[
    str | None,
    typer.Option(
        "--only",
        help="curve, table1, table2, multi, figure3: parts of the page.",
        show_default="all, or the part of the size",
    ),
]
Split = Annotated[str, typer.Option("--split", help="test, or dev to choose settings.")]
Ranks = Annotated[str | None, typer.Option("--ranks", help="Ranks of the curve: 4,1.", show_default="the protocol's")]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        help="Methods of the curve, such as sum-tuned,gradient.",
        show_default="all of them; with --quick, without iso-c, tsv-m, ssr-merge, loraclr",
    ),
]
Disjoint = Annotated[
    bool, typer.Option("--disjoint", help="Curve: fuse all disjoint sets of n, and pool their scores.")
]
Fused = Annotated[
    int | None,
    typer.Option(
        "--fused", min=1, help="Concepts in the tables' models; the paper has 14.", show_default="the protocol's"
    ),
]
Concepts = Annotated[
    str,
    typer.Option(
        "--concepts",
        help="The `first` 64 concepts of tiny, 64 people who look `alike`, or `all`. For another base: FOLDER of pictures.",
    ),
]
ScorerName = Annotated[str, typer.Option("--scorer", help="efficientnet, or clip: exactly as in the paper.")]
ClipFolder = Annotated[Path | None, typer.Option("--clip", help="The folder of CLIP ViT-B/32.", show_default="none")]
VisionFolder = Annotated[
    Path | None,
    typer.Option("--vision", help="Judge identity by this vision model: DINO, faces.", show_default="none"),
]

# Of `mos-bench settings`
Axes = Annotated[
    str | None,
    typer.Option(
        "--only", help="Settings to try, such as ridge,preserve,rows,groups,tuning.", show_default="all of them"
    ),
]
Rank = Annotated[int, typer.Option("--rank", help="Rank of the tuned concepts: 4 or 1.")]
StudyConcepts = Annotated[
    str, typer.Option("--concepts", help="The `first` 64 concepts of tiny, 64 people who look `alike`, or `all`.")
]
StudySplit = Annotated[str, typer.Option("--split", help="Settings are chosen on dev.")]

# Of `mos-bench front`
Points = Annotated[
    list[str] | None,
    typer.Option("--only", help="A point by its name in the table; repeat it.", show_default="all of them"),
]

# Of `mos-bench teach` and `mos-bench tuning`
SameWorld = Annotated[
    str, typer.Option("--base", help="The base model: `tiny`, or a diffusers folder of the same world.")
]
Each = Annotated[int, typer.Option("--each", min=1, help="Identities of each of three kinds.")]
Part = Annotated[int, typer.Option("--part", min=0, help="The share of the work that this process does, from 0.")]
PartCount = Annotated[int, typer.Option("--parts", min=1, help="Number of processes that share the work.")]
Variants = Annotated[
    list[str] | None,
    typer.Option("--only", help="A change by its name in the table; repeat it.", show_default="all of them"),
]


def names(text: str | None) -> tuple[str, ...]:
    """Return the names of a flag such as `--only curve,multi`."""
    return tuple(text.split(",")) if text else ()


def numbers(text: str | None, flag: str) -> tuple[int, ...]:
    """Return the numbers of a flag such as `--n 3,8`.

    Raises:
        RequestError: a part is not a number of at least 1.

    """
    try:
        values = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise RequestError(f"{flag} {text}: expected numbers such as 3,8") from error
    if any(value < 1 for value in values):
        raise RequestError(f"{flag} {text}: expected numbers of at least 1")
    return values


def shares(text: str | None, flag: str) -> tuple[float, ...]:
    """Return the numbers of a flag such as `--strengths 0.05,0.1`.

    Raises:
        RequestError: a part is not a number.

    """
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise RequestError(f"{flag} {text}: expected numbers such as 0.05,0.1") from error


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
