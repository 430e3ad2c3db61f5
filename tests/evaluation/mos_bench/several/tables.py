"""The page, its tables and their CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from mos_bench.identity.pages.results import table
from mos_bench.rows import command_line, device_name
from mos_bench.several.judging import Gate, Row
from mos_bench.several.scenes import ALONE

# The rows and the goals of each n.
Measured = Mapping[int, tuple[Sequence[Row], Sequence[Gate]]]
HEADS = ("in one picture", "drawn by", "each recognised", "all", "collapse", "confusion", "pictures")
GATE_HEADS = ("in one picture", "goal", "needed", "own, regions", "the best of fused", "")


def rows_table(rows: Sequence[Row]) -> str:
    """Return the table of all layouts and ways."""
    lines, before = [], ""
    for row in rows:
        of_pictures = [row.all_in, row.collapsed, row.confused] if row.layout != ALONE.title else ["", "", ""]
        title = "" if row.layout == before else row.layout
        lines.append([title, row.way, row.recognised, *of_pictures, len(row.pictures)])
        before = row.layout
    return table(HEADS, lines)


def gates_table(gates: Sequence[Gate]) -> str:
    """Return the table of goals, each reached or missed."""
    lines = [[g.layout, g.goal, f"{g.needed:.3f}", g.reached, g.by_fused, g.verdict] for g in gates]
    return table(GATE_HEADS, lines)


def csv_of(measured: Measured) -> bytes:
    """Return a row for each layout and way, every share with the ends of its interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{figure}{end}" for figure in HEADS[2:6] for end in ("", " low", " high")]
    writer.writerow(["n", *HEADS[:2], "pictures", *figures])
    for n, (rows, _) in measured.items():
        for row in rows:
            alone = row.layout == ALONE.title
            shares = [row.recognised] if alone else [row.recognised, row.all_in, row.collapsed, row.confused]
            ends = [f"{value:.5f}" for share in shares for value in (share.mean, share.low, share.high)]
            writer.writerow([n, row.layout, row.way, len(row.pictures), *ends, *[""] * (len(figures) - len(ends))])
    return text.getvalue().encode()


def page(base: str, steps: int, measured: Measured) -> str:
    """Return the page of a run."""
    parts = [
        "# Several in one picture, measured",
        f"    {command_line()}",
        f"Base {base}; {steps} steps; {device_name()}. A part as wide as high is cut out where each concept "
        "stands, and recognised\namong the n fused ones. *All*: every part is recognised. *Collapse*: two parts "
        "are recognised as one concept.\n*Confusion*: the best one-to-one assignment of parts to the picture's "
        "concepts is not the asked one; by chance it\nwould be 0.5 of two and 0.833 of three. Brackets are "
        "Wilson's 95 % intervals over subjects or pictures.",
    ]
    for n, (rows, gates) in measured.items():
        parts += [f"## n = {n}", rows_table(rows), gates_table(gates)]
    return "\n\n".join(parts) + "\n"
