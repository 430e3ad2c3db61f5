"""What own changes cost at Stable Diffusion 1.5's real size: one guided pass of the UNet.

    python tests/bench/slow/bench_drawing_sd15.py [--side 64] [--times 3] [--first-level]

The picture is divided among the concepts named, so that every cell has an own change: the most that
they can cost. Both passes draw the same regions; the other one draws them by the fused change.
Times are CPU seconds where there is no GPU, so that a busy machine does not count. Target: each
concept named costs less than 5 %, with 14 and with 32 in the model. `--first-level` takes the
finest level of the UNet alone, where own changes cost most: a machine with less memory can run it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import Bench, alternating
from random_models import write_random_sd15

from mos_common.attention import conditioned
from mos_common.base_model import Base, load_base
from mos_common.conditioning import read_prompts
from mos_common.edlora import LowRank
from mos_common.own.attach import attached_with_own
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_common.written_prompts import Phase

CASES = ((14, 2), (32, 4))  # concepts in the model, and named
RANK = 4


def main() -> None:
    """Measure every case on a random model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=64, help="cells of the latents in each direction")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first-level", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench("drawing_sd15")
    with tempfile.TemporaryDirectory() as folder:
        write_random_sd15(Path(folder) / "base", first_level=given.first_level)
        base = load_base(str(Path(folder) / "base"), dtype=None if torch.cuda.is_available() else "float32")
        for concepts, named in CASES:
            measure(bench, base, concepts, named, given.side, given.times)
    bench.write()


def measure(bench: Bench, base: Base, concepts: int, named: int, side: int, times: int) -> None:
    """Time a pass with own changes and one without, and count their operations."""
    tokens = [f"<{number}>" for number in range(named)]
    width = base.token_table.shape[1]
    vocabulary = {token: torch.randn(1, 2, width) * 0.02 for token in tokens}
    own = {token: changes_of(base, RANK) for token in tokens}
    regions = [Region(token, Box(i / named, 0, (i + 1) / named, 1)) for i, token in enumerate(tokens)]
    conditioning = read_prompts(base, ["a place"], vocabulary, guidance=7.5, regions=regions, size=(side, side))
    noise = torch.randn(2, base.latent_channels, side, side).to(base.device, base.dtype)
    time = torch.tensor(500, device=base.device)
    with (
        torch.inference_mode(),
        attached_with_own(base, changes_of(base, RANK * concepts), own) as changes,
        conditioned(base, conditioning, keep=True) as unet,
    ):

        def fused() -> None:
            unet.predict(noise, time)

        def owned() -> None:
            with changes.placed(["a place"], regions, vocabulary, [Phase(0, conditioning)], 20):
                unet.predict(noise, time)

        clock = "wall" if torch.cuda.is_available() else "cpu"
        measured = alternating({"fused": fused, "own": owned}, times, clock)
        counted = [operations(run) for run in (fused, owned)]
    case = f"{concepts} in the model, {named} named, latents {side} x {side}"
    ratios = [one / other - 1 for one, other in zip(measured["own"], measured["fused"], strict=True)]
    bench.add_spread(case, "seconds_fused", measured["fused"], "s")
    bench.add_spread(case, "time_each_named", [ratio / named for ratio in ratios], "ratio")
    bench.add(case, "operations_each_named", (counted[1] / counted[0] - 1) / named, "ratio")


def operations(run: Callable[[], None]) -> int:
    """Return the floating point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def changes_of(base: Base, rank: int) -> dict[str, LowRank]:
    """Return a random change of every layer that tuning changes."""
    return {
        layer.name: LowRank(
            torch.randn(rank, layer.d_in) / layer.d_in**0.5, 0.02 * torch.randn(layer.d_out, rank), float(rank)
        )
        for layer in base.layout.attention
    }


if __name__ == "__main__":
    main()
