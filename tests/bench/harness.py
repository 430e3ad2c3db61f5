"""Shared code of the benchmarks: paired timing, peak memory of a fresh process, result files.

A benchmark prints a table and writes build/bench/NAME.json:
{"device", "versions", "rows": [{"case", "figure", "value", "unit"}]}. Speed and memory are compared
within one run, warm, alternating, several times; the spread is written beside the median.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mos_bench.rows import Row, device_name, versions

OUT = Path("build/bench")


@dataclass
class Bench:
    """The rows of one benchmark."""

    name: str
    rows: list[Row] = field(default_factory=list)

    def add(self, case: str, figure: str, value: float, unit: str) -> None:
        """Add a number and print it."""
        self.rows.append(Row(case, figure, float(value), unit))
        print(f"{case}: {figure} {value:.6g} {unit}", flush=True)

    def add_spread(self, case: str, figure: str, values: list[float], unit: str) -> None:
        """Add the median, minimum and maximum."""
        self.add(case, figure, statistics.median(values), unit)
        if len(values) > 1:
            self.rows.append(Row(case, f"{figure}_min", min(values), unit))
            self.rows.append(Row(case, f"{figure}_max", max(values), unit))

    def write(self) -> None:
        """Print the table and write the file."""
        OUT.mkdir(parents=True, exist_ok=True)
        report = {"device": device_name(), "versions": versions(), "rows": [asdict(row) for row in self.rows]}
        (OUT / f"{self.name}.json").write_text(json.dumps(report, indent=1) + "\n")
        table = Table("case", "figure", "value", "unit", title=f"{self.name} on {device_name()}")
        for row in self.rows:
            table.add_row(row.case, row.figure, f"{row.value:.6g}", row.unit)
        Console().print(table)
        print(OUT / f"{self.name}.json")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(run: Callable[[], Any], clock: str = "wall") -> float:
    """Return the wall time of one call, GPU work included, or the CPU time of all its threads."""
    _wait()
    started = CLOCKS[clock]()
    run()
    _wait()
    return CLOCKS[clock]() - started


def alternating(runs: dict[str, Callable[[], Any]], times: int, clock: str = "wall") -> dict[str, list[float]]:
    """Return the seconds of each run, warm and in turns, so that other load affects all of them.

    On a busy machine the clock "cpu" does not count the time of other processes.
    """
    for run in runs.values():
        run()
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(times):
        for name, run in runs.items():
            measured[name].append(seconds(run, clock))
    return measured


def peak_rss(work: Callable[..., None], *arguments: Any) -> int:
    """Return the peak memory of a fresh process that does `work`, in bytes."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(send, work, arguments))
    process.start()
    send.close()
    peak: int = receive.recv()
    process.join()
    return peak


def _measured(send: Any, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    work(*arguments)
    send.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    send.close()


def forget_peak() -> None:
    """Free what the GPU holds for nobody, and measure its peak from here on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def add_peak(bench: Bench, case: str) -> None:
    """Add the most memory that the GPU had allocated since `forget_peak`; nothing on a CPU."""
    if torch.cuda.is_available():
        bench.add(case, "peak_allocated", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
