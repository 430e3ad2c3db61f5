"""`mos-bench identity`, `settings` and `front`: identity, and what settings of fusion change."""

from __future__ import annotations

from pathlib import Path

import typer

from mos_bench.cli import flags
from mos_common.options import Base, Device, Dtype, TuningSteps


def register(app: typer.Typer) -> None:
    """Add the commands to `mos-bench`."""
    app.command(epilog="Example: mos-bench identity --quick --out build/identity")(identity)
    app.command(epilog="Example: mos-bench settings --out build/identity")(settings)
    app.command(epilog="Example: mos-bench front --n 14,32 --probed 0 --out build/identity")(front)


def identity(
    out: flags.Out = Path("build/identity"),
    quick: flags.Quick = False,
    full: flags.Full = False,
    only: flags.Parts = None,
    split: flags.Split = "test",
    counts: flags.Counts = None,
    ranks: flags.Ranks = None,
    methods: flags.Methods = None,
    sets: flags.Sets = None,
    prompts: flags.Prompts = None,
    seeds: flags.Seeds = None,
    probed: flags.Probed = None,
    disjoint: flags.Disjoint = False,
    fused: flags.Fused = None,
    base: Base = "tiny",
    concepts: flags.Concepts = "first",
    tuned: flags.Tuned = None,
    steps: TuningSteps = None,
    draw_steps: flags.DrawSteps = None,
    scorer: flags.ScorerName = "efficientnet",
    clip: flags.ClipFolder = None,
    vision: flags.VisionFolder = None,
    docs: flags.Docs = None,
    device: Device = None,
    dtype: Dtype = None,
    jobs: flags.Jobs = 2,
    helper: flags.Helper = False,
) -> None:
    """Measure identity, text alignment and drift, with the paper's tables, on unseen concepts."""
    from mos_bench.identity.measuring.paper_tables import FUSED
    from mos_bench.identity.options import PAPER, Options, size_of
    from mos_bench.identity.run import run_identity

    size = size_of(quick=quick, full=full)
    how = PAPER if scorer == "clip" else None
    options = Options(
        out=out,
        parts=flags.names(only) or size.parts,
        half=split,
        counts=flags.numbers(counts, "--n") or size.counts,
        ranks=flags.numbers(ranks, "--ranks") or size.ranks,
        protocol=size.protocol.changed(prompts=prompts, seeds=seeds, probed=probed, steps=draw_steps, how=how),
        fused=fused or FUSED,
        disjoint=disjoint,
        sets=tuple(sets or ()),
        methods=flags.names(methods) or size.methods,
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
    with flags.helpers(0 if helper else jobs - 1):
        run_identity(options, helper=helper)


def settings(
    out: flags.Out = Path("build/identity"),
    counts: flags.Counts = None,
    prompts: flags.Prompts = None,
    seeds: flags.Seeds = None,
    probed: flags.Probed = None,
    only: flags.Axes = None,
    rank: flags.Rank = 4,
    sets: flags.Sets = None,
    split: flags.StudySplit = "dev",
    concepts: flags.StudyConcepts = "first",
    base: Base = "tiny",
    tuned: flags.Tuned = None,
    steps: TuningSteps = None,
    draw_steps: flags.DrawSteps = None,
    docs: flags.Docs = None,
    device: Device = None,
    dtype: Dtype = None,
    jobs: flags.Jobs = 2,
    helper: flags.Helper = False,
) -> None:
    """Measure how each fusion setting changes identity, text alignment and drift, on dev."""
    from mos_bench.identity.drawing.protocol import Protocol
    from mos_bench.identity.settings_study import COUNTS, Study, run_study

    study = Study(
        out=out,
        half=split,
        counts=flags.numbers(counts, "--n") or COUNTS,
        only=flags.names(only),
        sets=tuple(sets or ()),
        rank=rank,
        concepts=concepts,
        protocol=Protocol().changed(prompts=prompts, seeds=seeds, probed=probed, steps=draw_steps),
        base=base,
        tuned=tuned,
        steps=steps,
        docs=docs,
        device=device,
        dtype=dtype,
    )
    with flags.helpers(0 if helper else jobs - 1):
        run_study(study, helper=helper)


def front(
    out: flags.Out = Path("build/identity"),
    counts: flags.Counts = None,
    prompts: flags.Prompts = None,
    seeds: flags.Seeds = None,
    probed: flags.Probed = None,
    only: flags.Points = None,
    rank: flags.Rank = 4,
    split: flags.StudySplit = "dev",
    concepts: flags.StudyConcepts = "first",
    base: Base = "tiny",
    tuned: flags.Tuned = None,
    steps: TuningSteps = None,
    draw_steps: flags.DrawSteps = None,
    docs: flags.Docs = None,
    device: Device = None,
    dtype: Dtype = None,
    jobs: flags.Jobs = 2,
    helper: flags.Helper = False,
) -> None:
    """Measure accuracy against drift for choices of s, λ and μ, the average and the tuned sum."""
    from mos_bench.identity.drawing.protocol import Protocol
    from mos_bench.identity.front import Front, run_front
    from mos_bench.identity.options import Options
    from mos_bench.identity.settings_study import COUNTS

    options = Options(
        out=out,
        half=split,
        concepts=concepts,
        protocol=Protocol().changed(prompts=prompts, seeds=seeds, probed=probed, steps=draw_steps),
        base=base,
        tuned=tuned,
        steps=steps,
        docs=docs,
        device=device,
        dtype=dtype,
    )
    chosen = Front(options, flags.numbers(counts, "--n") or COUNTS, rank, tuple(only or ()))
    with flags.helpers(0 if helper else jobs - 1):
        run_front(chosen, helper=helper)
