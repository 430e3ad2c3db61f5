"""`mos-bench identity`: parse flags, measure the requested parts, write the results."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from mos_bench.identity.bench import Bench
from mos_bench.identity.cases import Case, ceiling_case, floor_case
from mos_bench.identity.concept_drawings import Protocol
from mos_bench.identity.concepts import concepts_in, tiny_concepts
from mos_bench.identity.curve import COUNTS, RANKS, Curve, measure_curve
from mos_bench.identity.markdown import (
    case_table,
    chosen_table,
    curve_table,
    drift_table,
    gains_table,
    multi_table,
    rivals_table,
    single_and_fused_table,
)
from mos_bench.identity.methods import CURVE
from mos_bench.identity.models import untouched
from mos_bench.identity.multi import measure_multi
from mos_bench.identity.plots import plot_cases, plot_curve, plot_single_and_fused, require_matplotlib
from mos_bench.identity.results import (
    Results,
    case_rows,
    curve_rows,
    plain,
    single_and_fused_rows,
    write_table,
)
from mos_bench.identity.scorers import Clip, EfficientNet, Scorer, VisionModel
from mos_bench.identity.sheets import case_sheet, concept_sheet
from mos_bench.identity.tables import FUSED, measure_figure_3, measure_table_1, measure_table_2
from mos_bench.rows import command_line, device_name, versions
from mos_common.base_model import Base, load_base
from mos_common.drawing import Drawing
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.shell import say

P_MEANS = "p is the two-sided p-value of a sign-flip permutation test"
PARTS = ("curve", "table1", "table2", "multi", "figure3")
QUICK, SHEETS = (3, 8), 4
PAPER = Drawing(
    steps=50,
    guidance=7.5,
    scheduler="DDIMScheduler",
    negative=(
        "longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, fewer digits, cropped, worst quality, "
        "low quality"
    ),
)


@dataclass(frozen=True)
class Options:
    """The options of the command line."""

    out: Path
    parts: tuple[str, ...] = PARTS
    half: str = "test"
    counts: tuple[int, ...] = COUNTS
    ranks: tuple[int, ...] = (4, 1)
    protocol: Protocol = field(default_factory=Protocol)
    fused: int = FUSED
    disjoint: bool = False
    sets: tuple[str, ...] = ()
    methods: tuple[str, ...] = tuple(method.name for method in CURVE)
    base: str = "tiny"
    concepts: Path | None = None
    tuned: Path | None = None
    steps: int | None = None
    scorer: str = "efficientnet"
    clip: Path | None = None
    vision: Path | None = None
    docs: Path | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.parts) - set(PARTS):
            raise RequestError(f"--only {min(unknown)}: choose from {', '.join(PARTS)}")
        if unknown := set(self.methods) - {method.name for method in CURVE}:
            raise RequestError(f"--methods {min(unknown)}: choose from {', '.join(method.name for method in CURVE)}")
        if self.sets and self.parts != ("curve",):
            raise RequestError("--set is for gradient fusion in the curve: add --only curve")
        if unknown_ranks := set(self.ranks) - set(RANKS):
            raise RequestError(f"--ranks {min(unknown_ranks)}: choose from {', '.join(map(str, RANKS))}")
        if self.half not in ("dev", "test"):
            raise RequestError(f"--split {self.half}: expected dev or test")
        if self.scorer not in ("efficientnet", "clip") or (self.scorer == "clip") != (self.clip is not None):
            raise RequestError(
                "--scorer is efficientnet or clip; --scorer clip needs --clip FOLDER, and only that does"
            )
        if (self.scorer == "clip") != (self.concepts is not None):
            raise RequestError(
                "--scorer clip and --concepts go together: CLIP judges pictures of the world, the package's "
                "concepts and witnesses know tiny's only"
            )


def sized(quick: bool, full: bool) -> tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...], Protocol]:
    """Return counts, ranks, parts and protocol of `--quick`, the default and `--full`.

    Raises:
        RequestError: both at once.

    """
    if quick and full:
        raise RequestError("--quick and --full: one or the other")
    if full:
        return COUNTS, (4, 1), PARTS, Protocol(prompts=5, seeds=50, probed=0)
    if quick:
        return QUICK, (4,), ("curve",), Protocol(prompts=1, seeds=1, probed=4)
    return COUNTS, (4, 1), ("curve",), Protocol()


def open_bench(options: Options, base: Base, *, helper: bool = False) -> Bench:
    """Return the bench for these options."""
    clip = Clip(options.clip) if options.clip else None
    scorer: Scorer = VisionModel(options.vision) if options.vision else clip or EfficientNet()
    return Bench.on(
        base,
        options.out,
        options.protocol,
        scorer=scorer,
        concepts=concepts_in(options.concepts) if options.concepts else tiny_concepts(),
        tiny=options.concepts is None,
        tuned=options.tuned,
        steps=options.steps,
        clip=clip,
        helper=helper,
    )


def run_identity(options: Options, *, helper: bool = False) -> Results | None:
    """Measure, and write the results; a helper only does its share of the work."""
    torch.set_num_threads(1)
    started, base = time.monotonic(), load_base(options.base, device=options.device, dtype=options.dtype)
    to = options.out / "results"
    if to.is_dir() and not any(options.out.glob("*/cache.sqlite")):
        raise RequestError(
            f"{to} holds no measurement, and its files would be replaced: give --out a folder of its own"
        )
    require_matplotlib()
    bench, results, sections = open_bench(options, base, helper=helper), Results(), list[str]()
    if not helper:
        shutil.rmtree(to, ignore_errors=True)  # the cache can make the tables of an earlier run again
    with closing(bench.cache):
        for part in options.parts:
            rows, section = MEASURES[part](bench, options, to, helper)
            results.rows += rows.rows
            sections.append(section)
    if helper:
        return None
    about = _about(options, base, time.monotonic() - started)
    results.add("run", "seconds", time.monotonic() - started, "s")
    write_atomically(to / "identity.json", results.json())
    write_atomically(to / "identity.csv", results.csv())
    page = "\n\n".join(["# Identity, measured", about, *sections]) + "\n"
    write_atomically(to / "results.md", page.encode())
    if options.docs is not None:
        publish(to, options.docs, sheets=not options.disjoint and options.protocol.seeds == 1)
    say(f"{to}: results.md, identity.json, tables (*.csv, *.md), plots and contact sheets (*.png)")
    return results


def publish(results: Path, docs: Path, *, sheets: bool = True) -> None:
    """Copy a run's page, tables and pictures into `docs`.

    Contact sheets are copied only with `sheets`. Fragments of the page (the other *.md),
    identity.csv and identity.json are left out, since they repeat the page and the tables.
    """
    page = (results / "results.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if sheets or not line.startswith("![") or "sheet" not in line]
    write_atomically(docs / "results.md", ("\n".join(lines).rstrip() + "\n").encode())
    for file in sorted([*results.glob("*.csv"), *results.glob("*.png")]):
        if file.name != "identity.csv" and (sheets or "sheet" not in file.name):
            publish_file(file, docs)


def publish_file(file: Path, docs: Path) -> None:
    """Copy one file into `docs`; reduce a PNG to 256 colours, a third of its size."""
    content = io.BytesIO(file.read_bytes())
    if file.suffix == ".png":
        with Image.open(content) as picture:
            few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        content = io.BytesIO()
        few.save(content, "PNG", optimize=True)
    write_atomically(docs / file.name, content.getvalue())


def _curve(bench: Bench, options: Options, to: Path, helper: bool) -> tuple[Results, str]:
    methods = [method.changed(options.sets) for method in CURVE if method.name in options.methods]
    counts = bench.counts_in(options.half, options.counts)
    curve = measure_curve(bench, options.half, counts, methods, options.ranks, disjoint=options.disjoint)
    if helper:
        return Results(), ""
    rows, text = curve_rows(curve), ["## Identity against the number of concepts"]
    for rank in options.ranks:
        plot_curve(curve, rank, to / f"curve-rank{rank}.png")
        text += [f"### Rank {rank}", curve_table(curve, rank, curve.bounds), f"![rank {rank}](curve-rank{rank}.png)"]
        text += [f"Ours − each rival, paired by concept and seed; {P_MEANS}:", gains_table(curve, rank)]
        text += [f"Drift of the base, rank {rank}:", drift_table(curve, rank)]
    if curve.chosen:
        text += ["### λ, chosen on dev", chosen_table(curve)]
    text += _curve_sheets(bench, options, curve, max(counts), to)
    write_table(to, "curve", rows, "\n\n".join(text))
    return rows, "\n\n".join(text)


def _curve_sheets(bench: Bench, options: Options, curve: Curve, most: int, to: Path) -> list[str]:
    """Write sheets of the first probed concepts at the largest n."""
    text, rank = list[str](), options.ranks[0]
    probed = [concept for concept in bench.half(options.half) if concept.name in curve.singles[rank].scores]
    at_most = [case for case in curve.cases if case.about["n"] == most and case.about["rank"] == rank]
    for concept in probed[:SHEETS]:
        name = f"sheet-{concept.slug}.png"
        cases: Sequence[Case] = [curve.singles[rank], *at_most, curve.bounds[0]]
        concept_sheet(bench, concept, cases, to / name, f"{concept.name}, {most} concepts in one model, seed 0")
        text.append(f"![{concept.slug}]({name})")
    return text


def _table_1(bench: Bench, options: Options, to: Path, helper: bool) -> tuple[Results, str]:
    return _single_and_fused(bench, options, to, helper, "table1")


def _table_2(bench: Bench, options: Options, to: Path, helper: bool) -> tuple[Results, str]:
    return _single_and_fused(bench, options, to, helper, "table2")


def _single_and_fused(bench: Bench, options: Options, to: Path, helper: bool, name: str) -> tuple[Results, str]:
    measure = measure_table_1 if name == "table1" else measure_table_2
    rows = measure(bench, options.half, options.fused)
    probed = bench.probed(bench.half(options.half)[: options.fused])
    bounds = [floor_case(bench, untouched(), probed), ceiling_case(bench, probed)]
    if helper:
        return Results(), ""
    plot_single_and_fused(rows, to / f"{name}.png")
    title = "The paper's Table 1: single → fused" if name == "table1" else "The paper's Table 2: tuning x fusion"
    text = [
        f"## {title}",
        f"{min(options.fused, len(bench.half(options.half)))} concepts in one model.",
        single_and_fused_table(rows, probed, bounds),
        "The last row's fused model − each other row's, paired by concept and seed:",
        rivals_table(rows),
    ]
    text.append(f"![{name}]({name}.png)")
    found = single_and_fused_rows(rows, name)
    found.rows += case_rows(bounds, name).rows
    write_table(to, name, found, "\n\n".join(text))
    return found, "\n\n".join(text)


def _multi(bench: Bench, options: Options, to: Path, helper: bool) -> tuple[Results, str]:
    cases = measure_multi(bench, options.half, options.fused)
    ceiling = ceiling_case(bench, bench.probed(bench.half(options.half)[: options.fused]))
    if helper:
        return Results(), ""
    title = "Several concepts in one picture, each in its own part"
    return _written(bench, to, "multi", title, cases, [ceiling], multi_table(cases, ceiling))


def _figure_3(bench: Bench, options: Options, to: Path, helper: bool) -> tuple[Results, str]:
    cases = measure_figure_3(bench, options.half, options.fused)
    probed = bench.probed(bench.half(options.half)[: options.fused])
    bounds = [floor_case(bench, untouched(), probed), ceiling_case(bench, probed)]
    if helper:
        return Results(), ""
    title = "What embeddings alone carry (the paper's Figure 3)"
    return _written(bench, to, "figure3", title, cases, bounds, case_table(cases, bounds))


def _written(
    bench: Bench, to: Path, name: str, title: str, cases: Sequence[Case], bounds: Sequence[Case], shown: str
) -> tuple[Results, str]:
    """Write a table of cases, its plot and its contact sheet.

    Return its rows and its section of the page.
    """
    plot_cases(cases, bounds, to / f"{name}.png")
    case_sheet(bench, cases, to / f"{name}-sheet.png", title)
    text = "\n\n".join([f"## {title}", shown, f"![{name}]({name}.png)", f"![{name} sheet]({name}-sheet.png)"])
    rows = case_rows([*bounds, *cases], name)
    write_table(to, name, rows, text)
    return rows, text


def _about(options: Options, base: Base, seconds: float) -> str:
    protocol = options.protocol
    return "\n".join(
        [
            f"    {command_line()}",
            "",
            f"Split `{options.half}`; prompts of each of four kinds: {protocol.prompts}; seeds: "
            f"{protocol.seeds}; concepts scored "
            f"of those fused: {f'the first {protocol.probed}' if protocol.probed else 'all'}"
            f"{'; as many disjoint sets of n as there are, pooled' if options.disjoint else ''}. Base "
            f"{options.base}, {base.fingerprint}. "
            f"{device_name()}; {seconds:.0f} s, with what was cached before. {plain(dict(versions()))}.",
            "",
            "Image alignment is the mean cosine of all (drawn, held-back) pairs; identity accuracy the share "
            "of drawings that are "
            "nearest to their own concept among all; text alignment the share of what the prompt names "
            "(class, place, look, "
            "companion) that witnesses confirm; drift 1 - cosine of ordinary prompts' drawings to the base's; "
            "diversity 1 - cosine "
            "between the seeds of one prompt. Brackets are 95 % intervals over concepts"
            + (" and seeds." if protocol.seeds > 1 else "; at one seed, what other noise would change is not in them."),
        ]
    )


MEASURES = {"curve": _curve, "table1": _table_1, "table2": _table_2, "multi": _multi, "figure3": _figure_3}
