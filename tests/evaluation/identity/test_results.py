"""A table as CSV has a line for each case and a column for each figure, with its unit."""

from __future__ import annotations

import csv

from mos_bench.identity.pages.results import Results


def test_a_case_is_a_line_and_what_it_lacks_is_empty():
    results = Results()
    results.add("one, alone", "drift", 0.25, "share")
    results.add("two", "scale", 3.0, "factor")
    results.add("one, alone", "scale", 2.0, "factor")
    lines = list(csv.DictReader(results.csv().decode().splitlines()))
    assert lines == [
        {"case": "one, alone", "drift (share)": "0.25", "scale (factor)": "2.0"},
        {"case": "two", "drift (share)": "", "scale (factor)": "3.0"},
    ]
