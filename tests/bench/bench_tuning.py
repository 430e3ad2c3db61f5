"""A step of tuning on `tiny`, beside a straightforward ED-LoRA loop and diffusers' LoRA step with a single embedding.

    python tests/bench/bench_tuning.py [--only speed|memory] [--times N] [--threads N] [--clock wall|cpu]

`speed_ratio_vs_straightforward`: steps a second of ours over those of ED-LoRA written down from the paper without a thought for cost
(straightforward.py). `time_ratio_vs_single_embedding`: seconds of our step over those of diffusers' usual one, which encodes a prompt
once where ED-LoRA encodes it for every cross-attention layer. `peak_rss_mb`: the most a fresh process holds over ten steps.
Same model, pictures, captions, batches and learning rates; tests/client/tuning/test_straightforward.py shows that the losses are the same.
Pictures have the templates that a folder without captions gets (a batch then repeats some, which ours encodes once) or captions of
their own (nothing is repeated).

Wanted on two CPU cores: at least twice the straightforward loop's speed, at most 1.35 times the single embedding's time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from contestants import ALL, MANY_STEPS, OURS, SINGLE, STRAIGHTFORWARD, contestant, shown
from harness import CLOCKS, Bench, alternating, peak_rss

from mos_client.tuning.settings import TuningSettings
from mos_common.base_model import load_base

STEPS, PICTURES = 10, 8


def take(steps: int, step: Callable[[], float]) -> None:
    """So many steps."""
    for _ in range(steps):
        step()


def ready(name: str, own_captions: bool, threads: int) -> Callable[[], float]:
    """A contestant on `tiny`, at its preset's settings."""
    torch.set_num_threads(threads)
    base = load_base("tiny", device="cpu")
    config = TuningSettings.of(base.preset, steps=MANY_STEPS)
    return contestant(name, base, shown(base, PICTURES, own_captions=own_captions), config)


def tune_some(name: str, threads: int) -> None:
    """What a fresh process does whose memory is measured."""
    take(STEPS, ready(name, False, threads))


def bench_speed(bench: Bench, times: int, threads: int, clock: str) -> None:
    """Steps in turns, ten at a time."""
    for own_captions, captions in ((False, "templates"), (True, "own captions")):
        runs = {name: partial(take, STEPS, ready(name, own_captions, threads)) for name in ALL}
        measured = alternating(runs, times, clock)
        report_speed(bench, f"tiny, batch 8, {captions}", STEPS, measured)


def report_speed(bench: Bench, case: str, steps: int, measured: dict[str, list[float]]) -> None:
    """Seconds a step of each, and ours against the others, turn by turn."""
    for name, values in measured.items():
        bench.add_spread(case, f"seconds_per_step_{name.replace(' ', '_')}", [s / steps for s in values], "s")
    turns = list(zip(*(measured[name] for name in (OURS, STRAIGHTFORWARD, SINGLE)), strict=True))
    bench.add_spread(case, "speed_ratio_vs_straightforward", [other / ours for ours, other, _ in turns], "ratio")
    bench.add_spread(case, "time_ratio_vs_single_embedding", [ours / other for ours, _, other in turns], "ratio")


def bench_memory(bench: Bench, times: int, threads: int) -> None:
    """Fresh processes in turns."""
    peaks: dict[str, list[float]] = {name: [] for name in ALL}
    for _ in range(times):
        for name, values in peaks.items():
            values.append(peak_rss(tune_some, name, threads) / 2**20)
    for name, values in peaks.items():
        bench.add_spread(f"tiny, batch 8, {name}", "peak_rss_mb", values, "MiB")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("speed", "memory"))
    parser.add_argument("--times", type=int, default=9, help="turns of the speed measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: where others use the machine too")
    arguments = parser.parse_args()
    bench = Bench("tuning")
    if arguments.only != "memory":
        bench_speed(bench, arguments.times, arguments.threads, arguments.clock)
    if arguments.only != "speed":
        bench_memory(bench, 3, arguments.threads)
    bench.write()


if __name__ == "__main__":
    main()
