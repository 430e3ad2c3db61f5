"""What regions cost in a guided pass of a random Stable Diffusion 1.5 UNet, 512x512.

    python tests/bench/slow/bench_regions_sd15.py                  CPU, in CPU seconds
    python tests/bench/slow/bench_regions_sd15.py --device cuda    float16, in wall seconds

Regions change the cross-attentions alone. So these are timed in turns, without and with regions, on
the inputs that they have in a pass, and the difference is told as a share of a whole pass. Target:
each region costs less than 8 %.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness import Bench, alternating, seconds
from torch import Tensor

from mos_common.attention import ConditionedUNet, LayerwiseCrossAttention, conditioned
from mos_common.base_model import Base, load_base
from mos_common.conditioning import Conditioning, RegionText
from mos_common.regions import Region
from mos_common.shapes import Box

COUNTS, TIMES = (1, 2, 4), 5


def conditioning_of(features: Tensor, count: int, side: int) -> Conditioning:
    """Return `count` regions side by side with soft edges, after two rows of prompts."""
    boxes = [Region("a cat", Box(i / count, 0, (i + 1) / count, 1), edge=0.05) for i in range(count)]
    texts = tuple(RegionText(region, features[2 + i]) for i, region in enumerate(boxes))
    return Conditioning(features[:2], 7.5, texts, (side, side))


def inputs_of_attentions(base: Base, told: Conditioning, noisy: Tensor) -> tuple[list[Tensor], float]:
    """Return what each cross-attention reads in a pass, and the seconds of a second one."""
    seen, when = [], torch.tensor([500], device=noisy.device)
    clock = "cpu" if noisy.device.type == "cpu" else "wall"
    handles = [
        cross.module.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
        for cross in base.layout.cross_attentions
    ]
    with conditioned(base, told, keep=True) as unet:
        unet.predict(noisy, when)
        for handle in handles:
            handle.remove()
        return seen, seconds(lambda: unet.predict(noisy, when), clock)


@torch.inference_mode()
def main() -> None:
    """Run on the available device."""
    from diffusers import UNet2DConditionModel

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--side", type=int, default=64, help="of the latents, in cells")
    parser.add_argument("--times", type=int, default=TIMES)
    asked = parser.parse_args()
    dtype, clock = (torch.float32, "cpu") if asked.device == "cpu" else (torch.float16, "wall")
    torch.manual_seed(0)
    torch.set_num_threads(1 if asked.device == "cpu" else 8)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768).to(asked.device, dtype).eval()
    base = replace(load_base("tiny", device="cpu"), unet=unet.to(memory_format=torch.channels_last))
    features = torch.randn(2 + max(COUNTS), base.layout.word_layers, 77, 768, device=asked.device, dtype=dtype)
    noisy = torch.randn(2, 4, asked.side, asked.side, device=asked.device, dtype=dtype)
    inputs, whole = inputs_of_attentions(base, conditioning_of(features, 0, asked.side), noisy)

    def attentions(count: int) -> list[tuple[LayerwiseCrossAttention, object, Tensor]]:
        one = ConditionedUNet(base, conditioning_of(features, count, asked.side), plain=count == 0)
        crosses = base.layout.cross_attentions
        readers = [LayerwiseCrossAttention(k, one) for k in range(len(crosses))]
        for reader in readers:
            reader.kept = one.keys_and_values(reader.place)
        return [(reader, cross.module, read) for reader, cross, read in zip(readers, crosses, inputs, strict=True)]

    prepared = {str(count): attentions(count) for count in (0, *COUNTS)}
    runs = {
        name: lambda of=of: [attend(module, given) for attend, module, given in of] for name, of in prepared.items()
    }
    measured, case = alternating(runs, asked.times, clock), f"{8 * asked.side}x{8 * asked.side}"
    bench = Bench("regions_sd15")
    bench.add(case, "pass_seconds", whole, "s")
    bench.add_spread(case, "cross_attention_seconds", measured["0"], "s")
    for count in COUNTS:
        pairs = zip(measured[str(count)], measured["0"], strict=True)
        each = [(regional - plain) / count / whole for regional, plain in pairs]
        bench.add_spread(f"{case}, {count} regions", "cost_of_each", each, "share of a pass")
    bench.write()


if __name__ == "__main__":
    main()
