"""A step of tuning on `tiny`, beside a straightforward ED-LoRA loop and diffusers' LoRA step.

    python tests/bench/bench_tuning.py [--only PART] [--times N] [--threads N] [--clock CLOCK]

`speed_ratio_vs_straightforward`: our steps per second over those of an unoptimised ED-LoRA written
from the paper (straightforward.py). `time_ratio_vs_single_embedding`: seconds of our step over
those of diffusers' usual one, which encodes a prompt once where ED-LoRA encodes it for every
cross-attention layer. `speed_ratio_at_most`: the straightforward loop over the passes of the frozen
networks alone (contestants.py), which no loop that encodes the same texts can do without.
`peak_rss_mb`: peak memory of a fresh process over ten steps. Model, pictures, captions, batches and
learning rates are the same; tests/client/tuning/test_straightforward.py shows that the losses are
too. Pictures have the templates of a folder without captions (a batch repeats some, which ours
encodes once) or captions of their own (nothing is repeated).

Target on two CPU cores: at least twice the straightforward loop's speed, at most 1.35 times the
single embedding's time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from contestants import ALL, FLOOR, MANY_STEPS, OURS, SINGLE, STRAIGHTFORWARD, contestant, shown
from harness import CLOCKS, Bench, alternating, peak_rss

from mos_client.tuning.settings import TuningSettings
from mos_common.base_model import load_base

STEPS, PICTURES = 10, 8


def take(steps: int, step: Callable[[], float]) -> None:
    """Take `steps` steps."""
    for _ in range(steps):
        step()


def ready(name: str, own_captions: bool, threads: int) -> Callable[[], float]:
    """Return the step function of a contestant on `tiny`, with its preset."""
    torch.set_num_threads(threads)
    base = load_base("tiny", device="cpu")
    config = TuningSettings.of(base.preset, steps=MANY_STEPS)
    return contestant(name, base, shown(base, PICTURES, own_captions=own_captions), config)


def tune_some(name: str, threads: int) -> None:
    """Tune for some steps, in a fresh process whose memory is measured."""
    take(STEPS, ready(name, False, threads))


def bench_speed(bench: Bench, times: int, threads: int, clock: str) -> None:
    """Time the contestants in turns, ten steps at a time."""
    for own_captions, captions in ((False, "templates"), (True, "own captions")):
        runs = {name: partial(take, STEPS, ready(name, own_captions, threads)) for name in (*ALL, FLOOR)}
        measured, case = alternating(runs, times, clock), f"tiny, batch 8, {captions}"
        report_speed(bench, case, STEPS, measured)
        turns = zip(measured[STRAIGHTFORWARD], measured[FLOOR], strict=True)
        bench.add_spread(case, "speed_ratio_at_most", [other / floor for other, floor in turns], "ratio")


def report_speed(bench: Bench, case: str, steps: int, measured: dict[str, list[float]]) -> None:
    """Report the seconds per step of each, and the ratios of ours to the others turn by turn."""
    for name, values in measured.items():
        bench.add_spread(case, f"seconds_per_step_{name.replace(' ', '_')}", [s / steps for s in values], "s")
    turns = list(zip(*(measured[name] for name in (OURS, STRAIGHTFORWARD, SINGLE)), strict=True))
    bench.add_spread(case, "speed_ratio_vs_straightforward", [other / ours for ours, other, _ in turns], "ratio")
    bench.add_spread(case, "time_ratio_vs_single_embedding", [ours / other for ours, _, other in turns], "ratio")


def bench_memory(bench: Bench, times: int, threads: int) -> None:
    """Measure the memory of fresh processes in turns."""
    peaks: dict[str, list[float]] = {name: [] for name in ALL}
    for _ in range(times):
        for name, values in peaks.items():
            values.append(peak_rss(tune_some, name, threads) / 2**20)
    for name, values in peaks.items():
        bench.add_spread(f"tiny, batch 8, {name}", "peak_rss_mb", values, "MiB")


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("speed", "memory"))
    parser.add_argument("--times", type=int, default=9, help="turns of the speed measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a machine that others use too")
    arguments = parser.parse_args()
    bench = Bench("tuning")
    if arguments.only != "memory":
        bench_speed(bench, arguments.times, arguments.threads, arguments.clock)
    if arguments.only != "speed":
        bench_memory(bench, 3, arguments.threads)
    bench.write()


if __name__ == "__main__":
    main()
