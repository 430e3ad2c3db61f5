"""Fusion at the real size of Stable Diffusion 1.5, on random weights: seconds and peak memory.

    python tests/bench/slow/bench_fusion_sd15.py                  CPU: n = 1, 2; float32, few steps
    python tests/bench/slow/bench_fusion_sd15.py --device cuda    n = 14, float16, default settings

Target on a GPU for 14 concepts: under 60 s and under 8 GB. The published code needs 50 minutes on
an A100 for the same number.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness import Bench, add_peak, forget_peak, peak_rss, seconds
from random_models import write_random_sd15
from synthetic import random_concept

from mos_common.base_model import load_base
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.gradient import GradientSettings


def fuse_on(folder: str, device: str, dtype: str, count: int, settings: GradientSettings) -> float:
    """Return the seconds of one fusion of `count` concepts, without loading the base."""
    base = load_base(folder, device=device, dtype=dtype)
    concepts = [random_concept(base, seed, strength=0.01) for seed in range(count)]
    return seconds(lambda: fuse(base, concepts, settings, progress=lambda line: print(line, flush=True)))


def fuse_once(folder: str, device: str, dtype: str, count: int, settings: GradientSettings, out: str) -> None:
    """Run `fuse_on` and write its seconds to `out`, in a process whose memory is measured."""
    torch.set_num_threads(2)
    Path(out).write_text(str(fuse_on(folder, device, dtype, count, settings)))


def bench_on_gpu(
    bench: Bench, case: str, folder: str, device: str, dtype: str, count: int, settings: GradientSettings
) -> None:
    """Fuse one concept in two steps, to warm up, then measure seconds and memory of all."""
    fuse_on(folder, device, dtype, 1, replace(settings, steps=2))
    forget_peak()
    bench.add(case, "fuse_seconds", fuse_on(folder, device, dtype, count, settings), "s")
    add_peak(bench, case)


def main() -> None:
    """Run on the available device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--counts", type=int, nargs="+", help="how many concepts")
    arguments = parser.parse_args()
    on_gpu = arguments.device != "cpu"
    settings = GradientSettings()
    if not on_gpu:  # a UNet step takes seconds
        settings = replace(
            settings, steps=1, guidance=1.0, contexts=("V", "photo of a V"), ordinary=("", "a tree"), batch=2
        )
    torch.set_num_threads(8 if on_gpu else 2)
    bench = Bench("fusion_sd15")
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = f"{scratch}/sd15", f"{scratch}/seconds"
        write_random_sd15(Path(folder))
        for count in arguments.counts or ((14,) if on_gpu else (1, 2)):
            case = f"n={count}, {len(settings.contexts)} contexts, {settings.steps} steps"
            if on_gpu:
                bench_on_gpu(bench, case, folder, arguments.device, "float16", count, settings)
                continue
            peak = peak_rss(fuse_once, folder, "cpu", "float32", count, settings, out)
            bench.add(case, "fuse_seconds", float(Path(out).read_text()), "s")
            bench.add(case, "peak_rss", peak / 2**30, "GiB")
    bench.write()


if __name__ == "__main__":
    main()
