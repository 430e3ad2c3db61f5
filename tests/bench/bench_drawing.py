"""Drawing on `tiny`, beside diffusers' own pipeline on the same weights, prompts and steps.

And how long it takes to the first preview, in a file, of one picture and of four.

    python tests/bench/bench_drawing.py

Targets on two CPU cores: a 64x64 picture at 20 steps within 1.5 s, a 64x128 picture within 2.5 s,
its first preview within 0.3 s. What regions cost is measured here for `tiny`;
`slow/bench_regions_sd15.py` has the shapes of Stable Diffusion 1.5. The last rows are what own
changes cost: two concepts in two regions that cover the picture, beside the same regions drawn by a
fused change; `slow/bench_drawing_sd15.py` likewise. And what it costs that 2 or 32 concepts are in
the model, in CPU seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from harness import CLOCKS, Bench, alternating
from synthetic import random_concept
from torch import Tensor

from mos_client.drawing.previews import Preview
from mos_common.base_model import Base, base_path, load_base
from mos_common.concept import words_of
from mos_common.drawing import Drawing, draw
from mos_common.drawing_steps import Step
from mos_common.own.attach import Kept, attached_with_own
from mos_common.regions import Region
from mos_common.shapes import Box

MANY = (0, 2, 32)
PROMPT, STEPS, TIMES, CONCEPTS = "a woman with red hair on the beach", 20, 5, 14


def main() -> None:
    """Time two sizes, one picture at a time."""
    torch.set_num_threads(2)
    bench, base = Bench("drawing"), load_base("tiny", device="cpu")
    pipeline = StableDiffusionPipeline.from_pretrained(base_path("tiny"), safety_checker=None).to("cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for height, width in ((64, 64), (64, 128)):
        how = Drawing(steps=STEPS, height=height, width=width)
        runs = {
            "ours": lambda how=how: draw(base, [PROMPT], [0], how=how),
            "diffusers": lambda size=(height, width): pipeline(
                PROMPT, height=size[0], width=size[1], num_inference_steps=STEPS, guidance_scale=base.preset.guidance
            ),
        }
        measured, case = alternating(runs, TIMES), f"{height}x{width}, {STEPS} steps"
        bench.add_spread(case, "seconds", measured["ours"], "s")
        bench.add_spread(case, "seconds_diffusers", measured["diffusers"], "s")
        ratios = [one / other for one, other in zip(measured["ours"], measured["diffusers"], strict=True)]
        bench.add_spread(case, "time_ratio_vs_diffusers", ratios, "ratio")
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 4):
            for clock in CLOCKS:
                file = Path(folder) / "preview.png"
                waited = [first_preview(base, file, count, CLOCKS[clock]) for _ in range(TIMES + 1)]
                bench.add_spread(f"64x64, {count} at once", f"{clock}_seconds_to_first_preview", waited[1:], "s")
    measure_regions(bench, base)
    own_changes(bench, base)
    many_in_the_model(bench, base)
    bench.write()


def many_in_the_model(bench: Bench, base: Base) -> None:
    """Time one prompt with 2 and with 32 concepts in the model, and with none, in turns."""
    kept = {count: Kept() for count in MANY}
    fused = {count: random_concept(base, count, rank=4 * count).concept.pairs for count in MANY[1:]}

    def drawn(count: int) -> None:
        with attached_with_own(base, fused[count] if count else {}, {}, kept[count]):
            draw(base, [PROMPT], [0], how=Drawing(steps=STEPS))

    measured = alternating({str(count): partial(drawn, count) for count in MANY}, 2 * TIMES, "cpu")
    for count in MANY[1:]:
        ratios = [one / other for one, other in zip(measured[str(count)], measured["0"], strict=True)]
        bench.add_spread(f"64x64, {count} in the model", "time_ratio_vs_base", ratios, "ratio")


def own_changes(bench: Bench, base: Base) -> None:
    """Time two regions with own changes and without, in turns; CPU seconds."""
    how, named = Drawing(steps=STEPS, height=64, width=128), [random_concept(base, seed) for seed in range(2)]
    regions = [Region(each.token, Box(i / 2, 0, (i + 1) / 2, 1)) for i, each in enumerate(named)]
    vocabulary = {each.token: words_of(each.concept, base) for each in named}
    fused = random_concept(base, 2, rank=4 * CONCEPTS).concept.pairs
    with attached_with_own(base, fused, {each.token: each.concept.pairs for each in named}) as changes:
        runs = {
            name: lambda own=own: draw(base, ["a place"], [0], vocabulary=vocabulary, regions=regions, how=how, own=own)
            for name, own in (("own", changes), ("fused", None))
        }
        measured, case = alternating(runs, TIMES, "cpu"), f"two regions, 64x128, {STEPS} steps, {CONCEPTS} in the model"
    bench.add_spread(case, "seconds", measured["own"], "s")
    ratios = [(one / other - 1) / 2 for one, other in zip(measured["own"], measured["fused"], strict=True)]
    bench.add_spread(case, "time_each_named", ratios, "ratio")


def first_preview(base: Base, file: Path, count: int, clock: Callable[[], float]) -> float:
    """Return the seconds from the call until the first preview is in its file."""
    preview, seen = Preview(base, file), list[float]()
    started = clock()

    def look(step: Step) -> None:
        preview.look(step)
        seen.append(clock() - started)

    draw(base, [PROMPT] * count, range(count), how=Drawing(steps=STEPS), on_latents=look)
    return seen[0]


def measure_regions(bench: Bench, base: Base) -> None:
    """Time one, two and four regions beside the same drawing without."""

    def drawing(count: int) -> Tensor:
        boxes = [Region(PROMPT, Box(i / count, 0, (i + 1) / count, 1)) for i in range(count)]
        return draw(base, [PROMPT], [0], regions=boxes, how=Drawing(steps=STEPS, height=64, width=128))

    measured = alternating({str(count): lambda count=count: drawing(count) for count in (0, 1, 2, 4)}, TIMES)
    for count in (1, 2, 4):
        pairs = zip(measured[str(count)], measured["0"], strict=True)
        each = [(regional / plain - 1) / count for regional, plain in pairs]
        bench.add_spread(f"64x128, {count} regions", "cost_of_each", each, "share of a drawing")


if __name__ == "__main__":
    main()
