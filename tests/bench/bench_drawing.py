"""Drawing on `tiny`, beside diffusers' own pipeline on the same weights, prompts and steps.

    python tests/bench/bench_drawing.py

Target on two CPU cores: a 64x64 picture at 20 steps within 1.5 s, a 64x128 picture within 2.5 s.
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from harness import Bench, alternating

from mos_common.base_model import base_path, load_base
from mos_common.drawing import Drawing, draw

PROMPT, STEPS, TIMES = "a woman with red hair on the beach", 20, 5


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
    bench.write()


if __name__ == "__main__":
    main()
