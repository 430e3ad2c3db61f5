"""`mos-bench front`: what is bought with drift, the front of accuracy against drift.

Every point is one choice of the terms of the equation: s, λ and μ (`solve.py`). Beside them stand
the average of the LoRAs, their sum with the weight of the highest image alignment, and each concept
alone. It is measured on dev, where the presets are chosen.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import product

import torch

from mos_bench.identity.measuring.bench import Bench
from mos_bench.identity.measuring.cases import Case
from mos_bench.identity.measuring.curve import RANKS, choose_scale, measure_methods, singles_of
from mos_bench.identity.measuring.methods import AVERAGE, SUM_TUNED, Method
from mos_bench.identity.options import Options, open_bench
from mos_bench.identity.pages.plots import plot_front, require_matplotlib
from mos_bench.identity.pages.publishing import publish_file
from mos_bench.identity.pages.results import Results, plain, table, write_table
from mos_bench.rows import command_line, device_name, versions
from mos_common.base_model import load_base
from mos_common.errors import RequestError
from mos_common.shell import say
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.per_group import PerGroup, text_of
from mos_server.fusion.presets import PRESETS, Terms

SINGLE = "each concept alone"
SHARPEN: Sequence[PerGroup] = (1.0, (1.0, 1.5, 1.25), (1.0, 2.0, 1.5), (3.0, 3.0, 1.0), 2.0)
RIDGE = (0.03, 0.003)
PRESERVE: Sequence[PerGroup] = (1.0, 3.0, (1.0, 1.0, 10.0))
FIGURES = ("image_alignment", "identity_accuracy", "text_alignment", "drift")


def points() -> dict[str, Method]:
    """Return the methods to measure by what the page calls them, the presets first."""
    grid = [Terms(s, ridge, mu) for s, ridge, mu in product(SHARPEN, RIDGE, PRESERVE)]
    named = {f"preset {name}": terms for name, terms in PRESETS.items()}
    named |= {_name(terms): terms for terms in grid if terms not in named.values()}
    ours = {name: Method(name, _settings(terms)) for name, terms in named.items()}
    return {AVERAGE.name: AVERAGE, SUM_TUNED.name: SUM_TUNED} | ours


@dataclass(frozen=True)
class Front:
    """The options of the command line."""

    options: Options
    counts: tuple[int, ...]
    rank: int = 4
    only: tuple[str, ...] = ()
    methods: Mapping[str, Method] = field(default_factory=points)

    def __post_init__(self) -> None:
        if self.rank not in RANKS:
            raise RequestError(f"--rank {self.rank}: choose from {', '.join(map(str, RANKS))}")
        if unknown := set(self.only) - set(self.methods):
            raise RequestError(f"--only {min(unknown)}: choose from {'; '.join(self.methods)}")

    @property
    def chosen(self) -> list[Method]:
        """The methods that `--only` asks for, or all."""
        return [method for name, method in self.methods.items() if not self.only or name in self.only]


def run_front(front: Front, *, helper: bool = False) -> dict[int, dict[str, Case]] | None:
    """Measure every point at every n; write front.md, .csv and .png."""
    torch.set_num_threads(1)
    require_matplotlib()
    options, started = front.options, time.monotonic()
    base = load_base(options.base, device=options.device, dtype=options.dtype)
    bench = open_bench(options, base, helper=helper)
    with closing(bench.cache):
        cases = measure_front(bench, front)
    if helper:
        return None
    to, name = options.out / "front", "front" if front.rank == 4 else f"front-rank{front.rank}"
    plot_front({n: _plotted(of_n) for n, of_n in cases.items()}, to / f"{name}.png")
    about = (
        f"    {command_line()}\n\nSplit `{options.half}`; rank {front.rank}; {options.protocol}. Base {options.base}, "
        f"{base.fingerprint}. {device_name()}; {time.monotonic() - started:.0f} s, with earlier results from the "
        f"cache. {plain(dict(versions()))}. Intervals are over concepts."
    )
    results, tables = front_tables(cases)
    page = "\n\n".join(["# Accuracy against drift", about, f"![front]({name}.png)", *tables])
    write_table(to, name, results, page)
    if options.docs is not None:
        for suffix in ("md", "csv", "png"):
            publish_file(to / f"{name}.{suffix}", options.docs)
    say(f"{to}: {name}.md, {name}.csv, {name}.png")
    return cases


def measure_front(bench: Bench, front: Front) -> dict[int, dict[str, Case]]:
    """Return cases by n and name, each concept alone first."""
    half, variant = front.options.half, RANKS[front.rank]
    counts = bench.counts_in(half, front.counts)
    concepts = bench.half(half)[: max(counts)]
    bench.tuned.tune_all(concepts, variant, bench.sharing)
    cases: dict[int, dict[str, Case]] = {}
    for n in counts:
        scales = {m.name: choose_scale(bench, m, n, variant, []) for m in front.chosen if m.grid}
        measured = measure_methods(bench, concepts[:n], variant, front.chosen, scales)
        alone = singles_of(bench, bench.probed(concepts[:n]), variant)
        cases[n] = {SINGLE: alone} | {case.name: case for case in measured}
    return cases


def front_tables(cases: Mapping[int, Mapping[str, Case]]) -> tuple[Results, list[str]]:
    """Return the rows, and one table per n: what is on the front is bold."""
    results, tables = Results(), []
    for n, of_n in cases.items():
        best = on_the_front(_plotted(of_n))
        lines = []
        for name, case in of_n.items():
            results.add_case(replace(case, name=f"n={n} {name}"), None if name == SINGLE else of_n[SINGLE])
            cells = [
                str(case.figure(figure)) if figure != "drift" or case.drift is not None else "" for figure in FIGURES
            ]
            lines.append([f"**{name}**" if name in best else name, *cells])
        tables += [f"## n = {n}", table(["", *(figure.replace("_", " ") for figure in FIGURES)], lines)]
    return results, tables


def on_the_front(plotted: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the points (drift, accuracy) that no other equals in both and beats in one."""

    def beaten(drift: float, accuracy: float) -> bool:
        return any(
            d <= drift and a >= accuracy and (d, a) != (drift, accuracy)
            for name, (d, a) in plotted.items()
            if name != SINGLE
        )

    return {name for name, point in plotted.items() if name != SINGLE and not beaten(*point)}


def _plotted(cases: Mapping[str, Case]) -> dict[str, tuple[float, float]]:
    return {
        name: (0.0 if name == SINGLE else case.figure("drift").mean, case.figure("identity_accuracy").mean)
        for name, case in cases.items()
    }


def _settings(terms: Terms) -> GradientSettings:
    return GradientSettings(sharpen=terms.sharpen, ridge=terms.ridge, preserve=terms.preserve)


def _name(terms: Terms) -> str:
    return f"s {text_of(terms.sharpen)}, λ {text_of(terms.ridge)}, μ {text_of(terms.preserve)}"
