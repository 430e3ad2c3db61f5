"""What drawing costs at Stable Diffusion 1.5's real size: own changes, regions, another concept.

    python tests/bench/slow/bench_drawing_sd15.py [--side 64] [--times 3] [--first-level]

Guided passes of the UNet are timed in turns, what a drawing sets up apart. With own changes
of several, the picture is divided among them, so that every cell has one: the most that they can
cost; the pass beside draws the same regions by the fused change. Times of passes are CPU seconds
where there is no GPU, so that a busy machine does not count. Targets: each concept named costs less
than 5 %, with 14 and with 32 in the model; each region less than 8 %; a switch to another concept
less than 50 ms of wall time. `--first-level` takes the finest level of the UNet alone, where own
changes cost most: a machine with less memory can run it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import Bench, alternating, seconds
from random_models import write_random_sd15

from mos_common.attention import conditioned
from mos_common.base_model import Base, load_base
from mos_common.conditioning import read_prompts
from mos_common.edlora import LowRank
from mos_common.own.attach import Kept, attached_with_own
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_common.written_prompts import Phase

CASES = ((14, 1), (14, 2), (32, 1), (32, 2), (32, 4))  # concepts in the model, and named
REGIONS = (0, 1, 2, 4)
RANK = 4
GUIDANCE, STEPS = 7.5, 20
Passes = Mapping[str, Callable[[], AbstractContextManager[Any]]]


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
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_random_sd15(Path(folder) / "base", first_level=given.first_level)
        base = load_base(str(Path(folder) / "base"), dtype=None if torch.cuda.is_available() else "float32")
        switches(bench, base, given.times)
        regions(bench, base, given.side, given.times)
        for concepts, named in CASES:
            own_changes(bench, base, concepts, named, given.side, given.times)
    bench.write()


def own_changes(bench: Bench, base: Base, concepts: int, named: int, side: int, times: int) -> None:
    """Time a pass with own changes and one without, and count their operations."""
    tokens = [f"<{number}>" for number in range(named)]
    vocabulary = vocabulary_of(base, tokens)
    own = {token: changes_of(base, RANK) for token in tokens}
    prompt = tokens[0] if named == 1 else "a place"
    boxes = [Region(token, Box(i / named, 0, (i + 1) / named, 1)) for i, token in enumerate(tokens)]
    placed = boxes if named > 1 else []
    conditioning = read_prompts(base, [prompt], vocabulary, guidance=GUIDANCE, regions=placed, size=(side, side))
    with (
        attached_with_own(base, changes_of(base, RANK * concepts), own) as changes,
        conditioned(base, conditioning, keep=True) as unet,
    ):
        ways: Passes = {
            "fused": nullcontext,
            "own": lambda: changes.placed([prompt], placed, vocabulary, [Phase(0, conditioning)], STEPS),
        }
        given = noise_of(base, side)
        measured = passes(ways, lambda _: unet.predict(*given), times)
        counted = [operations(way, lambda: unet.predict(*given)) for way in ways.values()]
    case = f"{concepts} in the model, {named} named, latents {side} x {side}"
    ratios = [one / other - 1 for one, other in zip(measured["own"], measured["fused"], strict=True)]
    bench.add_spread(case, "seconds_fused", measured["fused"], "s")
    bench.add_spread(case, "time_each_named", [ratio / named for ratio in ratios], "ratio")
    bench.add(case, "operations_each_named", (counted[1] / counted[0] - 1) / named, "ratio")


def regions(bench: Bench, base: Base, side: int, times: int) -> None:
    """Time a pass with one, two and four regions that cover the picture, and one without."""
    told = {}
    for count in REGIONS:
        boxes = [Region("a cat", Box(i / count, 0, (i + 1) / count, 1), edge=0.05) for i in range(count)]
        told[count] = read_prompts(base, ["a place"], {}, guidance=GUIDANCE, regions=boxes, size=(side, side))
    given = noise_of(base, side)
    ways = {str(count): partial(conditioned, base, each, keep=True) for count, each in told.items()}
    measured = passes(ways, lambda unet: unet.predict(*given), times)
    for count in REGIONS[1:]:
        pairs = zip(measured[str(count)], measured["0"], strict=True)
        each = [(regional / plain - 1) / count for regional, plain in pairs]
        bench.add_spread(f"{count} regions, latents {side} x {side}", "time_each_region", each, "ratio")


def switches(bench: Bench, base: Base, times: int) -> None:
    """Time what a drawing sets up: of another concept, of the same one again, and of the first."""
    tokens = [f"<{number}>" for number in range(2)]
    vocabulary, own = vocabulary_of(base, tokens), {token: changes_of(base, RANK) for token in tokens}
    fused, kept, drawn = changes_of(base, RANK * 32), Kept(), [0]
    conditioning = {
        token: read_prompts(base, [token], vocabulary, guidance=GUIDANCE, size=(64, 64)) for token in tokens
    }

    def draw(token: str, kept: Kept | None) -> None:
        phases = [Phase(0, conditioning[token])]
        with attached_with_own(base, fused, own, kept) as changes, changes.placed([token], [], vocabulary, phases, 20):
            pass

    def another() -> None:
        drawn[0] = 1 - drawn[0]
        draw(tokens[drawn[0]], kept)

    runs = {"another": another, "again": lambda: draw(tokens[drawn[0]], kept), "first": lambda: draw(tokens[0], None)}
    for name, measured in alternating(runs, max(times, 5)).items():
        bench.add_spread("32 in the model", f"seconds_to_set_up_{name}", measured, "s")


def passes(ways: Passes, predict: Callable[[Any], Any], times: int) -> dict[str, list[float]]:
    """Return the seconds of `predict` within each context, which it is given, warm and in turns."""
    clock = "wall" if torch.cuda.is_available() else "cpu"
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + 1):
        for name, way in ways.items():
            with way() as entered:
                took = seconds(partial(predict, entered), clock)
            if turn:
                measured[name].append(took)
    return measured


def operations(way: Callable[[], AbstractContextManager[Any]], predict: Callable[[], Any]) -> int:
    """Return the floating point operations of one pass."""
    with way(), FlopCounterMode(display=False) as counter:
        predict()
    return counter.get_total_flops()


def noise_of(base: Base, side: int) -> tuple[Tensor, Tensor]:
    """Return latents of two rows, and the time of a step."""
    noise = torch.randn(2, base.latent_channels, side, side).to(base.device, base.dtype)
    return noise, torch.tensor(500, device=base.device)


def vocabulary_of(base: Base, tokens: Sequence[str]) -> dict[str, Tensor]:
    """Return random words."""
    return {token: torch.randn(1, 2, base.token_table.shape[1]) * 0.02 for token in tokens}


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
