"""The tables in Markdown. Numbers are means with 95 % intervals over concepts and seeds.

Beside accuracy stands its interval over drawings, the concepts and prompts as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.measuring.cases import Case
from mos_bench.identity.measuring.curve import Curve
from mos_bench.identity.measuring.methods import GRADIENT
from mos_bench.identity.measuring.paper_tables import TableRow
from mos_bench.identity.measuring.statistics import Interval, Paired, paired
from mos_bench.identity.pages.results import table

SHOWN = ("image_alignment", "identity_accuracy", "text_alignment")
HEADS = ("image alignment", "identity accuracy", "text alignment")
OVER_DRAWINGS = "accuracy over drawings"
CELLS = (*HEADS[:2], OVER_DRAWINGS, HEADS[2])
"""The headings of `_cells`."""


def curve_table(curve: Curve, rank: int, bounds: Sequence[Case]) -> str:
    """Return the curve at one rank, with floor, ceiling and single.

    Diversity is included when there are several seeds.
    """
    several = not isnan(curve.singles[rank].figure("diversity").mean)

    def cells(case: Case, *others: str) -> list[str]:
        return [*_cells(case), *others, *([_short(case.figure("diversity"))] if several else [])]

    rows = [[case.name, "", "", *cells(case, "", "")] for case in [*bounds, curve.singles[rank]]]
    for case in curve.cases:
        if case.about["rank"] == rank:
            change = case.change("image_alignment", curve.singles[rank])
            scale = f"{case.about['scale']:g}" if case.about["scale"] != 1.0 else ""
            where = [f"{case.about['n']} ({case.about['n·r/d']:.2f})", f"{case.about['method']}"]
            rows.append([*where, scale, *cells(case, f"{change.mean:+.3f}", _short(case.figure("drift")))])
    heads = [
        "n (n·r/d)",
        "method",
        "λ",
        *CELLS,
        "image change",
        "drift",
        *(["diversity"] if several else []),
    ]
    return table(heads, rows)


def gains_table(curve: Curve, rank: int) -> str:
    """Return our method minus every rival, paired by concept; drift is paired by prompt."""
    rows = []
    for case in curve.cases:
        if case.about["method"] != GRADIENT.name or case.about["rank"] != rank:
            continue
        for rival in curve.rivals(case):
            gains = [paired(case.matrix(figure), rival.matrix(figure)) for figure in SHOWN]
            if case.drift is not None and rival.drift is not None:
                gains.append(paired(case.drift, rival.drift))
            rows.append([case.about["n"], rival.about["method"], *map(_gain, gains)])
    return table(["n", "ours − rival", *HEADS, "drift"], rows)


def single_and_fused_table(rows: Sequence[TableRow], concepts: Sequence[BenchConcept], bounds: Sequence[Case]) -> str:
    """Return Table 1 or 2: single → fused, over all concepts and by category."""
    categories = {c.category: [x.name for x in concepts if x.category == c.category] for c in concepts}
    groups = {"all": [concept.name for concept in concepts], **categories}
    lines = [
        [case.name if category == "all" else "", category, *_cells(case, names)]
        for case in bounds
        for category, names in groups.items()
    ]
    for row in rows:
        for category, names in groups.items():
            cells = [_arrow(row.single, row.fused, figure, names) for figure in SHOWN]
            cells.insert(2, f"{over_drawings(row.single, names)} → {over_drawings(row.fused, names)}")
            lines.append([row.title if category == "all" else "", category, *cells])
    return table(["method", "category", *CELLS], lines)


def rivals_table(rows: Sequence[TableRow]) -> str:
    """Return the last row of a table minus each of the others."""
    ours = rows[-1].fused
    lines = [[row.title, *(_gain(paired(ours.matrix(f), row.fused.matrix(f))) for f in SHOWN)] for row in rows[:-1]]
    return table([f"{rows[-1].title} − other", *HEADS], lines)


def case_table(cases: Sequence[Case], bounds: Sequence[Case]) -> str:
    """Return the table of cases."""
    return table(["case", *CELLS], [[case.name, *_cells(case)] for case in [*bounds, *cases]])


def multi_table(cases: Sequence[Case], ceiling: Case) -> str:
    """Return scores of each subject in its own part, and of whole pictures."""
    lines = []
    for case in [ceiling, *cases]:
        scores = [_short(case.figure(figure)) for figure in SHOWN[:2]]
        lines.append([case.name, *scores, over_drawings(case), _short(case.figure("all_recognised"))])
    return table(["case", *HEADS[:2], OVER_DRAWINGS, "all recognised in one picture"], lines)


def drift_table(curve: Curve, rank: int) -> str:
    """Return the drift of ordinary prompts by method."""
    counts = list(dict.fromkeys(case.about["n"] for case in curve.cases))
    methods = list(dict.fromkeys(str(case.about["method"]) for case in curve.cases))
    rows = []
    for method in methods:
        cases = [curve.case(int(str(n)), method, rank) for n in counts]
        rows.append([method, *(_short(case.figure("drift")) if case else "" for case in cases)])
    return table(["drift", *(f"n = {n}" for n in counts)], rows)


def chosen_table(curve: Curve) -> str:
    """Return the λ chosen on dev, and the image alignment of each candidate."""
    rows = []
    for choice in curve.chosen:
        reached = choice["dev_image_alignment"]
        assert isinstance(reached, dict)
        every = ", ".join(f"{scale:g}: {value:.3f}" for scale, value in reached.items())
        rows.append([choice["variant"], choice["method"], choice["n"], choice["scale"], every])
    return table(["tuning", "method", "n", "λ", "image alignment on dev by λ"], rows)


def over_drawings(case: Case, only: Sequence[str] | None = None) -> str:
    """Return the interval of accuracy over drawings and their number: `[0.62, 0.66] of 2688`."""
    drawn = case.over_drawings(only)
    return f"[{drawn.low:.3f}, {drawn.high:.3f}] of {drawn.concepts}" if drawn.concepts else ""


def _gain(gain: Paired) -> str:
    return f"{gain.difference.signed}, p {gain.p:.3f}"


def _cells(case: Case, only: Sequence[str] | None = None) -> list[str]:
    image, accuracy, text = (_short(case.figure(figure, only)) for figure in SHOWN)
    return [image, accuracy, over_drawings(case, only), text]


def _short(interval: Interval) -> str:
    if not interval.concepts or isnan(interval.mean):
        return ""
    return str(interval)


def _arrow(single: Case, fused: Case, figure: str, names: Sequence[str]) -> str:
    before, after = single.figure(figure, names), fused.figure(figure, names)
    if not before.concepts:
        return ""
    change = fused.change(figure, single, names)
    return f"{before.mean:.3f} → {after.mean:.3f} ({change.signed})"
