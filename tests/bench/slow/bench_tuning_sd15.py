"""A step of tuning at the sizes of Stable Diffusion 1.5 and XL: seconds and GPU memory.

    python tests/bench/slow/bench_tuning_sd15.py                  CPU: 512x512, batch 1, float32
    python tests/bench/slow/bench_tuning_sd15.py --device cuda    512x512, batch 4, bfloat16;
                                                                  then XL, 1024x1024, batch 1

Weights are random. The contestants and figures are those of tests/bench/bench_tuning.py.
`peak_allocated` is torch.cuda.max_memory_allocated of three steps of one contestant alone; "within
8 GB" and "within 12 GB" are ours, as `mos_client.tuning.memory_plan` plans them for such a GPU.

Target: twice the straightforward loop's speed, at most 1.35 times the single
embedding's time, and memory within the plans.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from bench_tuning import report_speed, take
from contestants import ALL, MANY_STEPS, OURS, STRAIGHTFORWARD, contestant, shown
from harness import CLOCKS, Bench, add_peak, alternating, forget_peak, seconds
from random_models import write_random_sd15, write_random_sdxl

from mos_client.tuning.memory_plan import Plan, plan_for
from mos_client.tuning.offloading import offloaded
from mos_client.tuning.settings import TuningSettings
from mos_common.base_model import Base, load_base


def bench_speed(bench: Bench, base: Base, config: TuningSettings, times: int, steps: int, clock: str = "wall") -> None:
    """Time all three in turns; captions differ, so that ours cannot share encodings."""
    what = shown(base, max(2, config.batch), own_captions=True)
    runs = {name: partial(take, steps, contestant(name, base, what, config)) for name in ALL}
    measured = alternating(runs, times, clock)
    report_speed(bench, f"sd 1.5, {base.picture_size} pixels, batch {config.batch}", steps, measured)


def bench_memory(bench: Bench, case: str, base: Base, name: str, config: TuningSettings, plan: Plan) -> None:
    """Measure three steps of one contestant alone on the GPU, and time the last two.

    Contestants that need no VAE have it offloaded.
    """
    what = shown(base, config.batch, own_captions=True)
    with offloaded(base, config) as loaded, loaded() if name == STRAIGHTFORWARD else nullcontext():
        step = contestant(name, base, what, config, plan)
        forget_peak()
        step()
        bench.add(case, "seconds_per_step", seconds(lambda: take(2, step)) / 2, "s")
        add_peak(bench, case)


def on_gpu(bench: Bench, sd15: Path, sdxl: Path, device: str, *, times: int = 7, steps: int = 5) -> None:
    """Measure speed and memory of Stable Diffusion 1.5, and memory of XL, in bfloat16."""
    base = load_base(str(sd15), device=device, dtype="bfloat16")
    config = TuningSettings.of(base.preset, steps=MANY_STEPS, changes={"batch": "4"})
    for name in ALL:
        bench_memory(bench, f"sd 1.5, batch 4, {name}", base, name, config, Plan(4))
    plan = plan_for(base, 4, config.rank, 8.0)
    bench_memory(bench, f"sd 1.5, batch 4, within 8 GB ({plan})", base, OURS, config, plan)
    bench_speed(bench, base, config, times=times, steps=steps)
    del base
    base = load_base(str(sdxl), device=device, dtype="bfloat16")
    config = TuningSettings.of(base.preset, steps=MANY_STEPS, changes={"batch": "1"})
    plan = plan_for(base, 1, config.rank, 12.0)
    bench_memory(bench, f"sdxl, batch 1, within 12 GB ({plan})", base, OURS, config, plan)


def main() -> None:
    """Run on the available device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--times", type=int, default=2, help="measured steps on a CPU")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for a machine that others use too")
    arguments = parser.parse_args()
    bench = Bench("tuning_sd15")
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.device != "cpu":
            write_random_sd15(Path(scratch) / "sd15")
            write_random_sdxl(Path(scratch) / "sdxl")
            on_gpu(bench, Path(scratch) / "sd15", Path(scratch) / "sdxl", arguments.device)
        else:
            torch.set_num_threads(2)
            write_random_sd15(Path(scratch) / "sd15")
            base = load_base(f"{scratch}/sd15", device="cpu", dtype="float32")
            config = TuningSettings.of(base.preset, steps=MANY_STEPS, changes={"batch": "1"})
            bench_speed(bench, base, config, times=arguments.times, steps=1, clock=arguments.clock)
    bench.write()


if __name__ == "__main__":
    main()
