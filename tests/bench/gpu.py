"""Measure everything that needs a GPU, one step after the other, and train `tiny` on.

    make gpu                                  on the GPU, into build/gpu; again: continues
    python tests/bench/gpu.py --dry-run       every step at toy size on the CPU, into build/gpu-dry
    python tests/bench/gpu.py --only gram     one step, by its name; repeat it for more

Each step writes OUT/STEP.json when it has ended, with the device and the versions of the libraries.
A step that has its file for this device is not run again, so the command can be killed at any time;
remove the file to measure anew. When all have ended, their numbers become a page,
docs/results/gpu-DEVICE.md, and docs/bench.md links to it; a dry run leaves the page in OUT.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "slow"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from gpu_steps import REAL, STEPS, TOY, Size
from harness import Bench

from mos_bench.rows import device_name, versions
from mos_common.files import write_atomically

DOCS = Path(__file__).resolve().parents[2] / "docs"
LINKS = re.compile(r"(<!-- pages of make gpu -->\n).*?(<!-- end -->)", re.DOTALL)
AFTERWARDS = """If the trained base draws better, it is worth freezing:

    python -m mos_tiny.recipe.judge {run}/base --out build/judge
    mos-bench teach --base {run}/base --out build/teach"""


def run_step(name: str, size: Size, out: Path) -> dict[str, Any]:
    """Return the report of a step, from its file or by running it."""
    file = out / f"{name}.json"
    about = {"step": name, "device": device_name() if size is REAL else "dry run", "versions": versions()}
    if file.is_file():
        report: dict[str, Any] = json.loads(file.read_bytes())
        if report["device"] == about["device"]:
            print(f"{name}: measured before, {file}", flush=True)
            return report
        print(f"{name}: was measured on {report['device']}, measured again", flush=True)
    print(f"{name}: begins", flush=True)
    torch.set_num_threads(size.threads)
    bench, begun = Bench(name), time.monotonic()
    STEPS[name](bench, size, out / "scratch")
    report = about | {"seconds": round(time.monotonic() - begun, 1), "rows": [asdict(row) for row in bench.rows]}
    write_atomically(file, json.dumps(report, indent=1).encode() + b"\n")
    return report


def page_of(reports: Sequence[dict[str, Any]], run: Path) -> str:
    """Return the page: device and versions, then a table for each step."""
    installed = ", ".join(f"{name} {version}" for name, version in reports[-1]["versions"].items())
    parts = [f"# Measured on {reports[-1]['device']}", f"`make gpu`: random weights at real size. {installed}."]
    for report in reports:
        table = ["| case | figure | value | unit |", "|---|---|---|---|"]
        table += [f"| {row['case']} | {row['figure']} | {row['value']:.4g} | {row['unit']} |" for row in report["rows"]]
        parts += [f"## {report['step']}, {report['seconds']:.0f} s", "\n".join(table)]
    return "\n\n".join([*parts, AFTERWARDS.format(run=run)]) + "\n"


def publish(page: str, device: str, docs: Path) -> Path:
    """Write a device's page, and list the pages of all devices in bench.md, between its marks."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    written = docs / "results" / f"gpu-{slug}.md"
    write_atomically(written, page.encode())
    bench = (docs / "bench.md").read_text(encoding="utf-8")
    links = "".join(
        f"- [{file.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}](results/{file.name})\n"
        for file in sorted((docs / "results").glob("gpu-*.md"))
    )
    write_atomically(docs / "bench.md", LINKS.sub(lambda marks: marks[1] + links + marks[2], bench).encode())
    return written


def main() -> None:
    """Run the steps that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="every step at toy size, on the CPU")
    parser.add_argument("--out", type=Path, help="folder of the results; default: build/gpu, or build/gpu-dry")
    parser.add_argument("--only", action="append", choices=list(STEPS), help="a step; without it: all, in order")
    asked = parser.parse_args()
    if not asked.dry_run and not torch.cuda.is_available():
        sys.exit("no GPU that torch can use (CUDA): nothing to measure; --dry-run tries every step on the CPU")
    size = TOY if asked.dry_run else REAL
    out = asked.out or Path("build/gpu-dry" if asked.dry_run else "build/gpu")
    chosen = [name for name in STEPS if not asked.only or name in asked.only]
    reports = [run_step(name, size, out) for name in chosen]
    if len(chosen) < len(STEPS):
        return
    page = page_of(reports, out / "scratch" / "tiny")
    write_atomically(out / "gpu.md", page.encode())
    print(out / "gpu.md" if asked.dry_run else publish(page, reports[-1]["device"], DOCS))


if __name__ == "__main__":
    main()
