"""Plots as PNG, by matplotlib without a screen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mos_bench.identity.measuring.cases import Case
from mos_bench.identity.measuring.curve import Curve
from mos_bench.identity.measuring.methods import GRADIENT
from mos_bench.identity.measuring.paper_tables import TableRow
from mos_common.errors import RequestError
from mos_common.files import write_atomically

TITLES = {
    "image_alignment": "image alignment",
    "identity_accuracy": "identity accuracy",
    "text_alignment": "text alignment",
    "drift": "drift of ordinary prompts",
}
COLOURS = {
    "average": "#8c8c8c",
    "sum-tuned": "#d1762b",
    "ties": "#9467bd",
    "dare": "#c49c94",
    "iso-c": "#e377c2",
    "tsv-m": "#bcbd22",
    "ssr-merge": "#17becf",
    "loraclr": "#8c564b",
    "gradient-paper": "#2a8a57",
    "faithful": "#7fa7e0",
    "own": "#111111",
    "gradient": "#1f5fbf",
}


def plot_curve(curve: Curve, rank: int, path: Path) -> None:
    """Plot the change of each figure by fusion against n, one line per method.

    Changes are paired by concept, since the concepts differ with n.
    """
    figure, axes = _figure(1, 4, (16, 4.2))
    single = curve.singles[rank]
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        for method in dict.fromkeys(str(case.about["method"]) for case in curve.cases):
            cases = [c for c in curve.cases if c.about["method"] == method and c.about["rank"] == rank]
            intervals = [case.figure(name) if name == "drift" else case.change(name, single) for case in cases]
            xs, colour = [float(str(case.about["n"])) for case in cases], COLOURS.get(method)
            axis.plot(
                xs, [interval.mean for interval in intervals], marker="o", markersize=4, label=method, color=colour
            )
            if method == GRADIENT.name:
                axis.fill_between(xs, [o.low for o in intervals], [o.high for o in intervals], alpha=0.12, color=colour)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=title if name == "drift" else f"{title}: change", xlabel="concepts in one model", xscale="log")
        ticks = sorted({float(str(case.about["n"])) for case in curve.cases})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    axes[-1].legend(fontsize=7)
    figure.suptitle(f"rank {rank}; 0 is each concept alone; the band is ours, 95 % over concepts and seeds")
    _save(figure, path)


def plot_single_and_fused(rows: Sequence[TableRow], path: Path) -> None:
    """Plot single and fused side by side, as in the paper's tables."""
    figure, axes = _figure(1, 3, (15, 0.7 + 0.5 * len(rows)))
    for axis, name in zip(axes, list(TITLES)[:3], strict=True):
        for y, row in enumerate(reversed(rows)):
            for case, colour, label in ((row.single, "#b0b0b0", "single"), (row.fused, "#1f5fbf", "fused")):
                interval = case.figure(name)
                place = y + (0.15 if label == "single" else -0.15)
                axis.plot([interval.low, interval.high], [place, place], color=colour, linewidth=1)
                axis.plot([interval.mean], [place], "o", color=colour, label=label if y == 0 else None)
        axis.set_yticks(range(len(rows)), [row.title for row in reversed(rows)] if axis is axes[0] else [])
        axis.set_title(TITLES[name])
    axes[0].legend(fontsize=7)
    _save(figure, path)


def plot_cases(cases: Sequence[Case], bounds: Sequence[Case], path: Path) -> None:
    """Plot bars of image alignment and accuracy."""
    figure, axes = _figure(1, 2, (13, 0.8 + 0.32 * len([*bounds, *cases])))
    everything = [*bounds, *cases][::-1]
    for axis, name in zip(axes, list(TITLES)[:2], strict=True):
        intervals = [case.figure(name) for case in everything]
        around = [[o.mean - o.low for o in intervals], [o.high - o.mean for o in intervals]]
        axis.barh(
            range(len(intervals)), [o.mean for o in intervals], xerr=around, color="#9bbbe0", error_kw={"linewidth": 1}
        )
        axis.set_yticks(range(len(intervals)), [case.name for case in everything] if axis is axes[0] else [])
        axis.set_title(TITLES[name])
    _save(figure, path)


def plot_settings(points: Mapping[str, Mapping[str, Mapping[int, float]]], path: Path, title: str) -> None:
    """Plot the settings study: settings as bars about the base point, by figure and n."""
    names = list(points)
    figure, axes = _figure(1, len(names), (5.5 * len(names), 1 + 0.3 * len(next(iter(points.values())))))
    for axis, name in zip(axes, names, strict=True):
        settings = list(points[name])[::-1]
        counts = sorted({n for of_setting in points[name].values() for n in of_setting})
        height = 0.8 / max(1, len(counts))
        for i, n in enumerate(counts):
            places = [y + 0.4 - height * (i + 0.5) for y in range(len(settings))]
            axis.barh(places, [points[name][s].get(n, 0.0) for s in settings], height=height, label=f"n = {n}")
        axis.set_yticks(range(len(settings)), settings if axis is axes[0] else [])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(name)
    axes[0].legend(fontsize=7)
    figure.suptitle(title)
    _save(figure, path)


def plot_front(points: Mapping[int, Mapping[str, tuple[float, float]]], path: Path) -> None:
    """Plot accuracy against drift, one panel for each n; the first point is each concept alone."""
    figure, axes = _figure(1, len(points), (5.5 * len(points), 4.6))
    for axis, (n, of_n) in zip(axes, points.items(), strict=True):
        (alone, (_, accuracy)), *others = of_n.items()
        axis.axhline(accuracy, color="black", linewidth=0.8, linestyle=":", label=alone)
        for name, (drift, reached) in others:
            named = name in COLOURS or name.startswith("preset")
            colour = COLOURS.get(name, COLOURS[GRADIENT.name])
            marker = "*" if name.startswith("preset") else "o"
            axis.plot(
                [drift], [reached], marker, color=colour, markersize=11 if named else 4, alpha=1 if named else 0.6
            )
            if named:
                axis.annotate(name, (drift, reached), textcoords="offset points", xytext=(6, -3), fontsize=7)
        axis.set(title=f"n = {n}", xlabel=TITLES["drift"], ylabel=TITLES["identity_accuracy"])
        axis.legend(fontsize=7)
    _save(figure, path)


def require_matplotlib() -> None:
    """Check that matplotlib is installed, before hours of work.

    Raises:
        RequestError: it is not installed.

    """
    if find_spec("matplotlib") is None:
        raise RequestError("plots need matplotlib, which is not installed: pip install matplotlib")


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flatten())


def _save(figure: Any, path: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    write_atomically(path, png.getvalue())
