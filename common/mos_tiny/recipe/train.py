r"""The UNet and the text encoder of `tiny`, together, from scratch or from an earlier base.

    python -m mos_tiny.recipe.train --data DATA/latents --tokenizer RUN/tokenizer \
        --vae DATA/latents/vae --out RUN [--init BASE]

`mos_tiny.recipe.latents` wrote DATA/latents. The command can be killed at any time; the same
command continues from RUN/state.pt. Every 15 minutes it writes that file, RUN/base (the averaged
weights as a diffusers folder in half precision), RUN/sheet_NNNNNk.png (fixed prompts and seeds)
and the learning curve.

The objective is Stable Diffusion's with v-prediction and min-SNR weights. Some captions are
dropped, for guidance.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from mos_common.shell import run, say
from mos_tiny.recipe.curve import LearningCurve
from mos_tiny.recipe.pack import pack
from mos_tiny.recipe.sheet import draw_sheet
from mos_tiny.recipe.trainer import Trainer, TrainingSet, build_text_encoder, build_unet

SAY_EVERY = 50


@dataclass(frozen=True)
class Training:
    """How long to train, and how fast.

    `samples` counts pictures over all continuations, and sets the decay of the learning rate.
    """

    samples: int = 1_000_000
    batch: int = 64
    learning_rate: float = 6e-4
    minutes: float = math.inf
    save_every_minutes: float = 15.0
    fine: float = 0.0
    sheet_steps: int = 20


def learning_rate(training: Training, step: int, seen: int) -> float:
    """Return the learning rate: a short warm-up, then a cosine over all samples down to 3 %."""
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, seen / training.samples))) * 0.97 + 0.03
    return training.learning_rate * min(1.0, (step + 1) / 60) * decay


def train(trainer: Trainer, training: Training, out: Path, vae: Any) -> None:
    """Train for `samples` or `minutes`, and write state, base, sheet and curve to `out`."""
    state = out / "state.pt"
    if trainer.load(state):
        say(f"continues after {trainer.seen} pictures")
    curve, losses = LearningCurve(out), []
    trainer.reseed()
    begun = saved = time.monotonic()
    start = trainer.seen

    def save() -> None:
        trainer.save(state)
        with trainer.averaged():
            curve.add(seen=trainer.seen, seconds=time.monotonic() - begun, held_out_loss=trainer.held_out_loss())
            parts = {"unet": trainer.unet, "text_encoder": trainer.text_encoder, "tokenizer": trainer.tokenizer}
            pack(out / "base", vae=vae, **parts)
        draw_sheet(out / "base", out / f"sheet_{trainer.seen // 1000:05}k.png", steps=training.sheet_steps)

    try:
        while trainer.seen < training.samples and time.monotonic() - begun < training.minutes * 60:
            rate_now = learning_rate(training, trainer.step, trainer.seen)
            losses.append(trainer.step_once(training.batch, rate_now, training.fine))
            if trainer.step % SAY_EVERY == 0:
                seconds = time.monotonic() - begun
                rate, loss = (trainer.seen - start) / seconds, np.mean(losses[-SAY_EVERY:])
                held = trainer.held_out_loss()
                say(
                    f"{seconds:.0f} s, {trainer.seen} seen, {rate:.1f} pictures/s, loss {loss:.4f}, held out {held:.4f}"
                )
            if time.monotonic() - saved > training.save_every_minutes * 60:
                save()
                saved = time.monotonic()
    finally:  # also after Ctrl-C, so that no training is lost
        save()


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    epilog="Example: python -m mos_tiny.recipe.train --data D/latents --tokenizer D/tokenizer "
    "--vae D/latents/vae --out RUN"
)
def train_command(
    data: Annotated[Path, typer.Option("--data", help="The folder that mos_tiny.recipe.latents wrote.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="The folder that mos_tiny.recipe.tokenizer wrote.")],
    vae_folder: Annotated[Path, typer.Option("--vae", help="Folder of the autoencoder.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write, and to continue from.")],
    init: Annotated[Path | None, typer.Option("--init", help="The base to start from; default: from scratch.")] = None,
    samples: Annotated[int, typer.Option("--samples", help="Total number of training pictures.")] = Training.samples,
    batch: Annotated[int, typer.Option("--batch", help="Square pictures in each step; half as many wide ones.")] = 64,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")] = Training.learning_rate,
    minutes: Annotated[float, typer.Option("--minutes", help="Stop after this many minutes.")] = math.inf,
    every: Annotated[float, typer.Option("--every", help="Minutes between saves.")] = Training.save_every_minutes,
    fine: Annotated[
        float,
        typer.Option(
            "--fine", min=0, max=1, help="Share of each batch with little noise, to learn details at the end."
        ),
    ] = 0.0,
    sheet_steps: Annotated[
        int, typer.Option("--sheet-steps", min=1, help="Denoising steps of the sheets.")
    ] = Training.sheet_steps,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Compute in bfloat16; weights, loss and optimisers stay in float32.")
    ] = False,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, …; default: a GPU if there is one.")] = "",
) -> None:
    """Train the text encoder and the UNet."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    words = CLIPTokenizer.from_pretrained(tokenizer)
    if init is None:
        unet, text_encoder = build_unet(), build_text_encoder(words)
    else:
        unet = UNet2DConditionModel.from_pretrained(init / "unet", low_cpu_mem_usage=False).float()
        text_encoder = CLIPTextModel.from_pretrained(init / "text_encoder").float()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    trainer = Trainer(unet, text_encoder, words, TrainingSet.read(data, words), device, dtype)
    vae = AutoencoderKL.from_pretrained(vae_folder, low_cpu_mem_usage=False).float()
    train(trainer, Training(samples, batch, rate, minutes, every, fine, sheet_steps), out, vae)


if __name__ == "__main__":
    run(app)
