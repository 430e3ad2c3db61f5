"""Rows of numbers, and the JSON, CSV and Markdown files written from them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mos_bench.identity.measuring.cases import FIGURES, UNITS, Case
from mos_bench.identity.measuring.curve import Curve
from mos_bench.identity.measuring.methods import GRADIENT
from mos_bench.identity.measuring.paper_tables import TableRow
from mos_bench.identity.measuring.statistics import Interval, paired
from mos_bench.rows import Row, device_name, versions
from mos_common.files import write_atomically


@dataclass
class Results:
    """Collected rows; values that are not finite are left out."""

    rows: list[Row] = field(default_factory=list)

    def add(self, case: str, figure: str, value: float, unit: str = "") -> None:
        """Add a number."""
        if math.isfinite(value):
            self.rows.append(Row(case, figure, round(float(value), 5), unit or UNITS.get(figure, "cosine")))

    def add_interval(self, case: str, figure: str, interval: Interval, unit: str = "") -> None:
        """Add a mean and both ends of its interval."""
        for end, value in (("", interval.mean), ("_low", interval.low), ("_high", interval.high)):
            self.add(case, figure + end, value, unit or UNITS.get(figure, "cosine"))

    def add_case(self, case: Case, before: Case | None = None) -> None:
        """Add all figures of a case, and their changes from `before`."""
        for figure in FIGURES:
            self.add_interval(case.name, figure, case.figure(figure))
        if (drawn := case.over_drawings()).concepts:
            self.add_interval(case.name, "identity_accuracy_over_drawings", drawn, "share")
            self.add(case.name, "drawings", drawn.concepts, "drawings")
        if case.drift is not None:
            self.add_interval(case.name, "drift", case.figure("drift"))
        if case.whole is not None:
            self.add_interval(case.name, "all_recognised", case.figure("all_recognised"))
        if before is not None:
            for figure in ("image_alignment", "text_alignment"):
                self.add_interval(case.name, f"{figure}_change", case.change(figure, before))
            alone = before.restricted(case).figure("identity_accuracy").mean
            if alone:
                self.add(case.name, "identity_kept", case.figure("identity_accuracy").mean / alone)
        for key in ("scale", "n·r/d"):
            if isinstance(value := case.about.get(key), float):
                self.add(case.name, key, value, "factor")

    def json(self) -> bytes:
        """Return the rows as JSON with device and versions."""
        document = {"device": device_name(), "versions": versions(), "rows": [asdict(row) for row in self.rows]}
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"

    def csv(self) -> bytes:
        """Return a line for each case as CSV, and a column for each figure with its unit."""
        cases: dict[str, dict[str, object]] = {}
        for row in self.rows:
            cases.setdefault(row.case, {"case": row.case})[f"{row.figure} ({row.unit})"] = row.value
        text = io.StringIO()
        columns = dict.fromkeys(name for case in cases.values() for name in case)
        writer = csv.DictWriter(text, ["case", *(name for name in columns if name != "case")], lineterminator="\n")
        writer.writeheader()
        writer.writerows(cases.values())
        return text.getvalue().encode()


def curve_rows(curve: Curve) -> Results:
    """Return every case of the curve, and our method's gains over each rival."""
    results = Results()
    for bound in [*curve.bounds, *curve.singles.values()]:
        results.add_case(bound)
    for case in curve.cases:
        rank = int(str(case.about["rank"]))
        results.add_case(case, curve.singles[rank])
        if case.about["method"] == GRADIENT.name:
            for rival in curve.rivals(case):
                _add_gains(results, case, rival)
    return results


def _add_gains(results: Results, case: Case, rival: Case) -> None:
    """Add the paired gains of a case over a rival, and the difference in drift."""
    over = f"gain_over_{str(rival.about['method']).replace('-', '_')}"
    for figure, name in (
        ("image_alignment", over),
        ("identity_accuracy", f"accuracy_{over}"),
        ("drift", f"drift_{over}"),
    ):
        if figure == "drift":
            if case.drift is None or rival.drift is None:
                continue
            gain = paired(case.drift, rival.drift)
        else:
            gain = paired(case.matrix(figure), rival.matrix(figure))
        results.add_interval(case.name, name, gain.difference, UNITS.get(figure, "cosine"))
        results.add(case.name, f"{name}_p", gain.p, "probability")


def single_and_fused_rows(rows: Sequence[TableRow], table: str) -> Results:
    """Return single and fused of each row of Table 1 or 2."""
    results = Results()
    for row in rows:
        results.add_case(_renamed(row.single, f"{table}: {row.title}, single"))
        results.add_case(_renamed(row.fused, f"{table}: {row.title}, fused"), row.single)
        if row is not rows[-1]:
            gain = paired(rows[-1].fused.matrix("image_alignment"), row.fused.matrix("image_alignment"))
            results.add_interval(f"{table}: {row.title}, fused", f"less_than {rows[-1].title}", gain.difference)
            results.add(f"{table}: {row.title}, fused", f"less_than {rows[-1].title}_p", gain.p, "probability")
    return results


def case_rows(cases: Sequence[Case], table: str) -> Results:
    """Return rows of independent cases."""
    results = Results()
    for case in cases:
        results.add_case(_renamed(case, f"{table}: {case.name}"))
    return results


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_table(folder: Path, name: str, results: Results, markdown: str) -> None:
    """Write NAME.csv and NAME.md."""
    write_atomically(folder / f"{name}.csv", results.csv())
    write_atomically(folder / f"{name}.md", markdown.encode() + b"\n")


def _renamed(case: Case, name: str) -> Case:
    return replace(case, name=name)


def plain(values: Mapping[str, object]) -> str:
    """Return settings as a line of text."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
