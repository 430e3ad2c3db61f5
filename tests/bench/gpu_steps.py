"""What `make gpu` measures, one function for each step, at real size and at toy size.

At real size the models are random ones with the layout of Stable Diffusion 1.5 and XL. At toy size
they have the same layouts with two narrow levels, the numbers mean nothing, and every line of a
step runs on a CPU in seconds: what needs no GPU to go wrong goes wrong there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from bench_drawing_sd15 import CASES, own_changes, regions, switches
from bench_fusion_sd15 import bench_on_gpu
from bench_tuning_sd15 import on_gpu
from harness import Bench, add_peak, alternating, forget_peak
from random_models import write_random_sd15, write_random_sdxl

from mos_common.base_model import load_base
from mos_common.drawing import Drawing, draw
from mos_server.fusion.gram import sliced_gram
from mos_server.fusion.methods.gradient import GradientSettings
from mos_tiny import base_folder
from mos_tiny.recipe.curve import LearningCurve
from reference.miniatures import write_miniature

PROMPT = "a woman with red hair on the beach"


@dataclass(frozen=True)
class Size:
    """How large a run is; `drawn_side` is in cells of the latents, `samples` are pictures."""

    device: str
    dtype: str
    threads: int
    concepts: int
    fusion: GradientSettings
    write_sd15: Callable[[Path], object]
    write_sdxl: Callable[[Path], object]
    times: int
    tuning_steps: int
    batches: tuple[int, ...]
    draw_steps: int
    drawn_side: int
    drawn_cases: tuple[tuple[int, int], ...]
    gram_shapes: tuple[tuple[int, int], ...]
    square: int
    wide: int
    training: tuple[str, ...]


REAL = Size(
    device="cuda",
    dtype="float16",
    threads=8,
    concepts=14,
    fusion=GradientSettings(),
    write_sd15=write_random_sd15,
    write_sdxl=write_random_sdxl,
    times=7,
    tuning_steps=5,
    batches=(1, 4),
    draw_steps=20,
    drawn_side=64,
    drawn_cases=CASES,
    gram_shapes=((24_000, 320), (12_000, 640), (5_120, 1280), (672, 768), (96, 2048)),
    square=48_000,
    wide=14_000,
    training=("--samples", "1000000", "--batch", "64", "--rate", "6e-4", "--fine", "0.3", "--every", "5"),
)
TOY = replace(
    REAL,
    device="cpu",
    dtype="float32",
    threads=1,
    concepts=2,
    fusion=GradientSettings(steps=1, contexts=("V",), ordinary=("a tree",)),
    write_sd15=partial(write_miniature, layout="sd1"),
    write_sdxl=partial(write_miniature, layout="xl"),
    times=1,
    tuning_steps=1,
    batches=(1,),
    draw_steps=1,
    drawn_side=4,
    drawn_cases=((2, 2),),
    gram_shapes=((300, 8),),
    square=264,
    wide=264,
    training=("--samples", "8", "--batch", "4", "--sheet-steps", "1", "--bfloat16"),
)


def base_of(size: Size, scratch: Path, layout: str) -> Path:
    """Return the folder of a random base, written at its first use."""
    folder = scratch / layout
    if not (folder / "model_index.json").is_file():  # it is written last
        (size.write_sd15 if layout == "sd15" else size.write_sdxl)(folder)
    return folder


def fusion(bench: Bench, size: Size, scratch: Path, layout: str) -> None:
    """Measure seconds and memory of fusing all concepts, at the shapes of one layout."""
    settings = size.fusion
    case = f"{layout}, n={size.concepts}, {len(settings.contexts)} contexts, {settings.steps} steps"
    folder = base_of(size, scratch, layout)
    bench_on_gpu(bench, case, str(folder), size.device, size.dtype, size.concepts, settings)


def tuning(bench: Bench, size: Size, scratch: Path) -> None:
    """Measure seconds and memory of a step of tuning."""
    folders = (base_of(size, scratch, layout) for layout in ("sd15", "sdxl"))
    on_gpu(bench, *folders, size.device, times=size.times, steps=size.tuning_steps)


@torch.inference_mode()
def drawing(bench: Bench, size: Size, scratch: Path) -> None:
    """Measure whole drawings of both layouts, then what regions and own changes cost in a pass."""
    for layout in ("sdxl", "sd15"):
        base = load_base(str(base_of(size, scratch, layout)), device=size.device, dtype=size.dtype)
        for count in size.batches:
            case = f"{layout}, {base.picture_size} pixels, {size.draw_steps} steps, {count} at once"
            drawn = partial(draw, base, [PROMPT] * count, range(count), how=Drawing(steps=size.draw_steps))
            forget_peak()
            taken = alternating({"ours": drawn}, size.times)["ours"]
            bench.add_spread(case, "seconds_per_picture", [each / count for each in taken], "s")
            add_peak(bench, case)
    switches(bench, base, size.times)
    regions(bench, base, size.drawn_side, size.times)
    for concepts, named in size.drawn_cases:
        own_changes(bench, base, concepts, named, size.drawn_side, size.times)


def exactness(bench: Bench, size: Size, scratch: Path) -> None:
    """Compare the device's Gram with float64 on the CPU, and with the CPU's slices, bit by bit."""
    for rows, width in size.gram_shapes:
        case, generator = f"{rows:,} x {width}", torch.Generator().manual_seed(0)
        X = torch.randn(rows, width, generator=generator) * torch.logspace(0, -4, width)
        moved, exact = X.to(size.device), X.double().T @ X.double()
        found = sliced_gram(moved)
        bench.add(case, "relative_error", float((found.cpu() - exact).norm() / exact.norm()), "share of the norm")
        bench.add(case, "same_bits_as_the_cpu", float(torch.equal(found.cpu(), sliced_gram(X))), "1: yes")
        products = {"slices": lambda X=moved: sliced_gram(X), "float64": lambda X=moved: X.double().T @ X.double()}
        for name, taken in alternating(products, size.times).items():
            bench.add_spread(case, f"seconds_{name}", taken, "s")
        if rows > width:  # else it is 0
            smallest = [float(torch.linalg.eigvalsh(G.cpu())[0]) for G in (found, exact)]
            bench.add(case, "least_eigenvalue_over_exact", smallest[0] / smallest[1], "ratio")


def training(bench: Bench, size: Size, scratch: Path) -> None:
    """Train `tiny` on, on new compositions; every command continues what a kill has left.

    The first point of the learning curve is `tiny` as it is, on the same held-out pictures.
    """
    tiny, data, run = base_folder(), scratch / "compositions", scratch / "tiny"
    latents, vae = data / "latents", str(tiny / "vae")
    if not (data / "train_128.json").is_file():
        counts = ("--square", str(size.square), "--wide", str(size.wide), "--seed", "5")
        recipe("compose", "--out", str(data), *counts)
    if not (latents / "train_128.json").is_file():
        recipe("latents", "--data", str(data), "--vae", vae, "--out", str(latents), "--keep", "--device", size.device)
    given = ["--data", str(latents), "--tokenizer", str(tiny / "tokenizer"), "--vae", vae, "--init", str(tiny)]
    given += ["--out", str(run), "--device", size.device, *size.training]
    if not LearningCurve(run).points:
        recipe("train", *given, "--samples", "0")
    recipe("train", *given)
    for point in LearningCurve(run).points:
        bench.add(f"tiny, {point['seen']:,.0f} more pictures", "held_out_loss", point["held_out_loss"], "loss")


def recipe(command: str, *arguments: str) -> None:
    """Run a command of the recipe of `tiny`."""
    subprocess.run([sys.executable, "-m", f"mos_tiny.recipe.{command}", *arguments], check=True)


STEPS: Mapping[str, Callable[[Bench, Size, Path], None]] = {
    "fusion-sd15": partial(fusion, layout="sd15"),
    "fusion-sdxl": partial(fusion, layout="sdxl"),
    "tuning": tuning,
    "drawing": drawing,
    "gram": exactness,
    "training": training,
}
