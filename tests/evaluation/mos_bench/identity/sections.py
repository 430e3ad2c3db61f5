"""The parts of the page: each measures, writes its tables and pictures, and returns its section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mos_bench.identity.drawing.models import untouched
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case, ceiling_case, floor_case
from mos_bench.identity.measuring.curve import Curve, measure_curve
from mos_bench.identity.measuring.methods import CURVE
from mos_bench.identity.measuring.multi import measure_multi
from mos_bench.identity.measuring.paper_tables import measure_figure_3, measure_table_1, measure_table_2
from mos_bench.identity.options import Options
from mos_bench.identity.pages.markdown import (
    case_table,
    chosen_table,
    curve_table,
    drift_table,
    gains_table,
    multi_table,
    rivals_table,
    single_and_fused_table,
)
from mos_bench.identity.pages.plots import plot_cases, plot_curve, plot_single_and_fused
from mos_bench.identity.pages.results import Results, case_rows, curve_rows, single_and_fused_rows, write_table
from mos_bench.identity.pages.sheets import case_sheet, concept_sheet

P_MEANS = "p is the two-sided p-value of a sign-flip permutation test"
SHEETS = 4


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
    results = single_and_fused_rows(rows, name)
    results.rows += case_rows(bounds, name).rows
    write_table(to, name, results, "\n\n".join(text))
    return results, "\n\n".join(text)


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


Section = Callable[[Bench, Options, Path, bool], tuple[Results, str]]
SECTIONS: Mapping[str, Section] = {
    "curve": _curve,
    "table1": _table_1,
    "table2": _table_2,
    "multi": _multi,
    "figure3": _figure_3,
}
"""Each returns its rows and its text; a helper (the last argument) only shares the work."""
