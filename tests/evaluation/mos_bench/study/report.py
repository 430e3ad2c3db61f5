"""What `mos-bench study tally` prints: who was left out and why, and a table for each question."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from pathlib import Path

from mos_bench.identity.pages.results import table
from mos_bench.study.answers import LEAST_CAUGHT, Sorted, read_answers, sort_raters
from mos_bench.study.tally import Comparison, csv_of, tally
from mos_bench.study.trials import QUESTIONS, read_key
from mos_common.errors import RequestError
from mos_common.files import write_atomically

TITLES = dict(zip(QUESTIONS, ("Which shows the subject better", "Which fits the text better"), strict=True))
HEADER = ("first", "second", "preferred, neither, not", "share of first", "95 % over pairs", "95 % over people")


def run_tally(key_file: Path, files: Sequence[Path], *, least: float = LEAST_CAUGHT, to: Path | None = None) -> str:
    """Return the report, and write the comparisons to `to` as CSV.

    Raises:
        RequestError: a file is damaged, or nobody is left.

    """
    key = read_key(key_file)
    raters = sort_raters([read_answers(file, key) for file in files], key, least)
    if not raters.kept:
        raise RequestError(
            f"none of {len(files)} raters answered {least:.0%} of the catch trials rightly: nothing to count"
        )
    comparisons = tally(key, raters.kept)
    if to is not None:
        write_atomically(to, csv_of(comparisons))
    return "\n\n".join([_about(raters, least), *(_section(name, comparisons) for name in QUESTIONS)])


def _about(raters: Sorted, least: float) -> str:
    count = len(raters.kept)
    lines = [
        f"{count} {'rater counts' if count == 1 else 'raters count'}. Excluded by the rule that at least {least:.0%} of the questions of catch "
        f"trials must be answered rightly: {len(raters.excluded)}."
    ]
    lines += [f"- {rater.file}: {right} of {asked} right" for rater, right, asked in raters.excluded]
    return "\n".join(lines)


def _section(question: str, comparisons: Sequence[Comparison]) -> str:
    rows = [
        (
            each.first,
            each.second,
            f"{each.wins}, {each.ties}, {each.losses}",
            f"{each.share:.3f}",
            f"{each.low:.3f} to {each.high:.3f}, n = {each.pairs}",
            "one rater, one concept"
            if isnan(each.bootstrap_low)
            else f"{each.bootstrap_low:.3f} to {each.bootstrap_high:.3f}",
        )
        for each in comparisons
        if each.question == question
    ]
    return f"{TITLES[question]}? Neither counts as half.\n\n{table(HEADER, rows)}"
