"""`mos-bench settings`: how each fusion setting changes the scores, one changed at a time.

It is measured on dev, where defaults are chosen. Every figure is the difference to the base point
on the same concepts and seeds. Second moments are shared: only settings that change recording
record again. It also measures where the fused model loses identity (`layer_groups.py`), and
concepts tuned with other settings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from itertools import product
from math import isfinite
from pathlib import Path

import torch

from mos_bench.identity.concepts.bench_concepts import BenchConcept
from mos_bench.identity.concepts.tuning import Variant
from mos_bench.identity.drawing.protocol import Protocol
from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case
from mos_bench.identity.measuring.curve import RANKS, measure_methods, singles_of
from mos_bench.identity.measuring.layer_groups import measure_groups
from mos_bench.identity.measuring.methods import Method
from mos_bench.identity.measuring.statistics import paired
from mos_bench.identity.options import Options, check_set, check_split, open_bench
from mos_bench.identity.pages.markdown import OVER_DRAWINGS, over_drawings
from mos_bench.identity.pages.plots import plot_settings, require_matplotlib
from mos_bench.identity.pages.publishing import publish_file
from mos_bench.identity.pages.results import Results, plain, table, write_table
from mos_bench.rows import command_line, device_name, versions
from mos_common.base_model import load_base
from mos_common.errors import RequestError
from mos_common.files import write_atomically
from mos_common.prompts import ORDINARY, RECORDED
from mos_common.settings import changed, parse_settings
from mos_common.shell import say
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.per_group import PerGroup
from mos_server.fusion.recording_settings import PAPER_PROMPTS

COUNTS = (3, 8, 14, 32)
BASE = GradientSettings()
SHARP: Mapping[str, PerGroup] = {
    "2,1,1": (2.0, 1.0, 1.0),
    "1,3,1": (1.0, 3.0, 1.0),
    "2,2,1": (2.0, 2.0, 1.0),
    "3,3,1": (3.0, 3.0, 1.0),
    "3,3,1.5": (3.0, 3.0, 1.5),
    "2": 2.0,
}
AXES: Mapping[str, Mapping[str, GradientSettings]] = {
    "sharpen": {name: replace(BASE, sharpen=value) for name, value in SHARP.items()}
    | {
        f"{name}, preserve 1,1,{preserve:g}": replace(BASE, sharpen=SHARP[name], preserve=(1.0, 1.0, preserve))
        for name, preserve in product(("2,2,1", "3,3,1", "3,3,1.5"), (3.0, 10.0))
    },
    "ridge": {f"{value:g}": replace(BASE, ridge=value) for value in (1e-4, 1e-3, 0.3)},
    "ridge_kind": {"diagonal": replace(BASE, ridge_kind="diagonal")},
    "towards": {f"{value:g}": replace(BASE, towards=value) for value in (0.0, 1.0)},
    "preserve": {f"{value:g}": replace(BASE, preserve=value) for value in (0.0, 0.3, 3.0)},
    "rows": {value: replace(BASE, rows=value) for value in ("words", "text", "all")},
    "unconditional": {"recorded": replace(BASE, unconditional=True)},
    "contexts": {
        "the paper's two": replace(BASE, contexts=PAPER_PROMPTS),
        "sixteen": replace(BASE, contexts=RECORDED),
    },
    "steps": {"20": replace(BASE, steps=20)},
    "recording": {"sixteen contexts, 20 steps, guided": replace(BASE, contexts=RECORDED, steps=20, guidance=None)},
    "text_inputs": {"own": replace(BASE, text_inputs="own")},
    "unet_inputs": {"fused": replace(BASE, unet_inputs="fused")},
    "guidance": {"the base's": replace(BASE, guidance=None)},
    "ordinary": {"four": replace(BASE, ordinary=ORDINARY[:4])},
    "cap": {f"{value:g}": replace(BASE, cap=value) for value in (1.0, 1e6)},
    "paper": {"objective": replace(BASE, ridge=1e-4, towards=0.0, preserve=0.0, rows="words", contexts=PAPER_PROMPTS)},
}
GRID = {
    f"ridge {ridge:g}, preserve {preserve:g}": replace(BASE, ridge=ridge, preserve=preserve)
    for ridge, preserve in product((0.01, 0.1), (0.3, 3.0))
}
TUNINGS: Mapping[str, Mapping[str, str]] = {
    "words 3": {"words": "3"},
    "frozen directions": {"frozen_directions": "true"},
}
TUNED_ANEW = 8  # other tunings use at most this many concepts: each takes a minute of a core
FIGURES = ("image_alignment", "identity_accuracy", "text_alignment", "drift")


@dataclass(frozen=True)
class Study:
    """The options of the command line."""

    out: Path
    half: str = "dev"
    counts: tuple[int, ...] = COUNTS
    only: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    rank: int = 4
    concepts: str = "first"
    protocol: Protocol = field(default_factory=Protocol)
    base: str = "tiny"
    tuned: Path | None = None
    steps: int | None = None
    docs: Path | None = None
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        known = (*AXES, "grid", "groups", "tuning")
        if unknown := set(self.only) - set(known):
            raise RequestError(f"--only {min(unknown)}: choose from {', '.join(known)}")
        check_split(self.half)
        check_set(self.concepts)
        if self.rank not in RANKS:
            raise RequestError(f"--rank {self.rank}: choose from {', '.join(map(str, RANKS))}")

    def asks_for(self, axis: str) -> bool:
        """Return True if an axis was requested."""
        return not self.only or axis in self.only

    @property
    def point(self) -> GradientSettings:
        """The base point: the defaults, with what `--set` says."""
        return changed(BASE, parse_settings(GradientSettings, self.sets))

    def settings(self) -> dict[str, GradientSettings]:
        """Return settings by name, the base point first; duplicates of it are left out."""
        point = self.point
        named = {"defaults": point}
        for axis, values in AXES.items():
            if self.asks_for(axis):
                moved = {f"{axis} {name}": _moved(point, settings) for name, settings in values.items()}
                named |= {name: settings for name, settings in moved.items() if settings != point}
        if self.asks_for("grid"):
            grid = {name: _moved(point, settings) for name, settings in GRID.items()}
            named |= {name: settings for name, settings in grid.items() if settings not in named.values()}
        return named


def _moved(point: GradientSettings, settings: GradientSettings) -> GradientSettings:
    """Return the base point with the values in which `settings` differs from the defaults."""
    names = [each.name for each in fields(settings)]
    other = {name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(BASE, name)}
    return changed(point, other)


def run_study(study: Study, *, helper: bool = False) -> Results | None:
    """Measure all settings at every n, and write settings.json, .csv, .md and .png."""
    torch.set_num_threads(1)
    require_matplotlib()
    started, base = time.monotonic(), load_base(study.base, device=study.device, dtype=study.dtype)
    options = Options(
        study.out,
        half=study.half,
        protocol=study.protocol,
        concepts=study.concepts,
        tuned=study.tuned,
        steps=study.steps,
    )
    bench = open_bench(options, base, helper=helper)
    with closing(bench.cache):
        cases = measure_settings(bench, study)
    if helper:
        return None
    results, points, text = study_rows(cases)
    results.add("run", "seconds", time.monotonic() - started, "s")
    to = study.out / "settings"
    name = "settings" if study.rank == 4 else f"settings-rank{study.rank}"
    about = (
        f"    {command_line()}\n\nSplit `{study.half}` of `{study.concepts}` concepts; rank {study.rank}; {study.protocol}. Base "
        f"{study.base}, {base.fingerprint}. "
        f"{device_name()}; {time.monotonic() - started:.0f} s, with earlier results from the cache. "
        f"{plain(dict(versions()))}. Defaults: {study.point}."
    )
    plot_settings(points, to / f"{name}.png", "change against the defaults")
    page = "\n\n".join(["# Settings of fusion, measured", about, text, f"![settings]({name}.png)"])
    write_table(to, name, results, page)
    write_atomically(to / f"{name}.json", results.json())
    if study.docs is not None:
        for suffix in ("md", "csv", "png"):
            publish_file(to / f"{name}.{suffix}", study.docs)
    say(f"{to}: {name}.md, {name}.json, {name}.csv, {name}.png")
    return results


def measure_settings(bench: Bench, study: Study) -> dict[int, dict[str, Case]]:
    """Return cases by n and setting name, `single` included."""
    counts = bench.counts_in(study.half, study.counts)
    concepts, variant = bench.half(study.half)[: max(counts)], RANKS[study.rank]
    bench.tuned.tune_all(concepts, variant, bench.sharing)
    methods = [Method(name, settings) for name, settings in study.settings().items()]
    by_count: dict[int, dict[str, Case]] = {}
    for n in counts:
        chosen = concepts[:n]
        cases = measure_methods(bench, chosen, variant, methods, {})
        by_count[n] = {"single": singles_of(bench, bench.probed(chosen), variant)}
        by_count[n] |= {case.name: case for case in cases}
        if study.asks_for("groups"):
            by_count[n] |= measure_groups(bench, chosen, variant, methods[0])
        if study.asks_for("tuning") and n <= TUNED_ANEW:
            by_count[n] |= measure_tunings(bench, chosen, variant, study.point)
    return by_count


def measure_tunings(
    bench: Bench, concepts: Sequence[BenchConcept], variant: Variant, settings: GradientSettings
) -> dict[str, Case]:
    """Score concepts tuned with other settings, alone and fused by `settings`."""
    cases: dict[str, Case] = {}
    for title, changes in TUNINGS.items():
        other = Variant(f"{variant.title} {title}", {**variant.settings, **changes})
        bench.tuned.tune_all(concepts, other, bench.sharing)
        alone = singles_of(bench, bench.probed(concepts), other)
        cases[f"{title}, single"] = alone
        (cases[title],) = measure_methods(bench, concepts, other, [Method(title, settings)], {})
    return cases


Points = dict[str, dict[str, dict[int, float]]]


def study_rows(cases: Mapping[int, Mapping[str, Case]]) -> tuple[Results, Points, str]:
    """Return rows, differences by figure, setting and n for the plot, and one table per n."""
    results, tables = Results(), []
    points: Points = {figure.replace("_", " "): {} for figure in FIGURES}
    for n, of_n in cases.items():
        lines = []
        for name, case in of_n.items():
            named = Case(f"n={n} {name}", case.scores, case.about, case.drift)
            results.add_case(named, None if name.endswith("single") else of_n.get(f"{name}, single", of_n["single"]))
            cells = []
            for figure in FIGURES:
                mean = case.figure(figure).mean if figure != "drift" or case.drift is not None else float("nan")
                change, note = _difference(case, of_n["defaults"], figure)
                if case.about.get("method") == name != "defaults" and isfinite(
                    change
                ):  # a setting, not a part of a model
                    points[figure.replace("_", " ")].setdefault(name, {})[n] = change
                    results.add(named.name, f"{figure}_against_defaults", change)
                cells.append(f"{mean:.3f}{note if name != 'defaults' else ''}" if isfinite(mean) else "")
            lines.append([name, *cells, over_drawings(case)])
        heads = ["setting", *(figure.replace("_", " ") for figure in FIGURES), OVER_DRAWINGS]
        tables += [f"## n = {n}", table(heads, lines)]
    return results, points, "\n\n".join(tables)


def _difference(case: Case, defaults: Case, figure: str) -> tuple[float, str]:
    """Return the change against the base point, and its interval as text."""
    if figure == "drift":
        if case.drift is None or defaults.drift is None:
            return float("nan"), ""
        difference = paired(case.drift, defaults.drift).difference
    else:
        difference = paired(case.matrix(figure), defaults.matrix(figure)).difference
    return difference.mean, f" ({difference.signed})"
