"""The autoencoder of `tiny`: pictures to latents of a quarter of their side, and back.

    python -m mos_tiny.recipe.vae --out RUN/vae --minutes 60                  train from scratch
    python -m mos_tiny.recipe.vae --init BASE/vae --out RUN/vae --decoder-only --minutes 40
    python -m mos_tiny.recipe.vae --init BASE/vae --minutes 0                 only measure

It learns from compositions, sprites and doodles that are made during training
(`mos_tiny.recipe.pictures`). `--decoder-only` leaves the encoder unchanged, so that earlier
latents, and UNets trained on them, stay valid. RUN/vae/state.pt is written every three minutes,
and the same command continues from it. The reconstruction of unseen pictures, in dB, is printed
before and after.
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
from jaxtyping import Float
from torch import Tensor, nn

from mos_common.shell import run, say
from mos_tiny.recipe.compose import World
from mos_tiny.recipe.curve import LearningCurve
from mos_tiny.recipe.kept import KINDS, kept_pictures
from mos_tiny.recipe.muon import Muon, split_matrices
from mos_tiny.recipe.pictures import as_tensor, training_batches
from mos_tiny.recipe.states import load_state, save_state

LATENT_CHANNELS = 4
SAVE_EVERY_S = 180.0
SAY_EVERY = 50


@dataclass(frozen=True)
class VaeTraining:
    """How to train the autoencoder on 64 x 64 pictures; `minutes` covers all continuations."""

    minutes: float = 60.0
    batch: int = 8
    learning_rate: float = 2e-3
    decoder_only: bool = False
    seed: int = 0


def build_vae() -> Any:
    """Build an untrained autoencoder that is nearly a linear low-pass filter.

    It learns several times faster than one with random weights.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, nn.Conv2d):
                _near_linear(name, module)
        vae.quant_conv.bias[LATENT_CHANNELS:] = -5  # small variances
        vae.quant_conv.weight[LATENT_CHANNELS:] *= 0.1
    return vae


def _near_linear(name: str, module: nn.Conv2d) -> None:
    assert module.bias is not None
    module.bias.zero_()
    module.weight.normal_(0, module.weight[0].numel() ** -0.5)
    if name.endswith("conv2"):  # the end of a residual branch
        module.weight.mul_(0.05)
    if module.kernel_size == (3, 3) and ("sampl" in name or "conv_in" in name or "conv_out" in name):
        module.weight.mul_(0.5)
        module.weight[:, :, 1, 1].normal_(0, module.weight.shape[1] ** -0.5)


@torch.no_grad()
def reconstructed(vae: Any, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Encode and decode pictures, in batches."""
    device = next(vae.parameters()).device
    decoded = [vae.decode(vae.encode(part.to(device)).latent_dist.mean).sample for part in torch.split(pictures, 50)]
    return torch.cat(decoded).clamp(-1, 1).cpu()


def psnr(vae: Any, pictures: Float[Tensor, "n 3 h w"]) -> float:
    """Return the mean peak signal-to-noise ratio of reconstructed pictures, in dB."""
    errors = ((reconstructed(vae, pictures) - pictures) ** 2).mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / errors)).mean())


def measure(vae: Any) -> dict[str, float]:
    """Measure the reconstruction of every kind of unseen pictures, in dB."""
    return {kind: round(psnr(vae, as_tensor(kept_pictures(kind))), 2) for kind in KINDS}


def reconstruction_loss(rebuilt: Float[Tensor, "n 3 h w"], pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, ""]:
    """Return squared error plus absolute errors of pixels and of edges (eyes and mouths)."""
    error = rebuilt - pictures
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return 10 * (error**2).mean() + error.abs().mean() + 0.5 * edges


def train(vae: Any, training: VaeTraining, out: Path) -> None:
    """Train in place for `minutes`, and write weights, state and learning curve to `out`."""
    vae.train()
    vae.encoder.requires_grad_(not training.decoder_only)
    vae.quant_conv.requires_grad_(not training.decoder_only)
    optimisers = _optimisers(vae, training)
    state, curve = out / "state.pt", LearningCurve(out)
    step, spent = 0, 0.0
    if kept := load_state(state):
        vae.load_state_dict(kept["vae"])
        for optimiser, values in zip(optimisers, kept["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        step, spent = kept["step"], kept["seconds"]
        say(f"continues at step {step}, after {spent / 60:.1f} minutes")
    device = next(vae.parameters()).device
    batches = training_batches(World(), training.batch, training.seed + step)
    begun, saved, errors = time.monotonic() - spent, spent, []
    while (spent := time.monotonic() - begun) < training.minutes * 60:
        _set_rates(optimisers, training.learning_rate, step, spent / (training.minutes * 60))
        errors.append(_step(vae, next(batches).to(device), training.decoder_only, optimisers))
        step += 1
        if step % SAY_EVERY == 0:
            decibel = float(np.mean(10 * np.log10(4 / np.array(errors[-SAY_EVERY:]))))
            say(
                f"{spent:.0f} s, step {step}, {step * training.batch / spent:.0f} pictures/s, training {decibel:.2f} dB"
            )
        if spent - saved > SAVE_EVERY_S:
            _save(vae, optimisers, step, spent, state)
            curve.add(seconds=spent, step=step, **measure(vae))
            vae.train()
            saved = spent
    _save(vae, optimisers, step, spent, state)


def _optimisers(vae: Any, training: VaeTraining) -> list[torch.optim.Optimizer]:
    matrices, rest = ([p for p in part if p.requires_grad] for part in split_matrices(vae))
    rate = training.learning_rate
    adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4, foreach=True)
    return [Muon(matrices, lr=rate, weight_decay=1e-4), adamw]


def _set_rates(optimisers: list[torch.optim.Optimizer], rate: float, step: int, progress: float) -> None:
    """Set the learning rate: a short warm-up, then a cosine down to one hundredth."""
    now = rate * min(1.0, (step + 1) / 30) * (0.5 * (1 + math.cos(math.pi * progress)) * 0.99 + 0.01)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = now


def _step(vae: Any, pictures: Tensor, decoder_only: bool, optimisers: list[torch.optim.Optimizer]) -> float:
    """Train one step, and return the mean squared error before it."""
    if decoder_only:
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
        rebuilt = vae.decode(latents).sample
        loss = reconstruction_loss(rebuilt, pictures)
    else:
        posterior = vae.encode(pictures).latent_dist
        rebuilt = vae.decode(posterior.sample()).sample
        divergence = (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        loss = reconstruction_loss(rebuilt, pictures) + 1e-5 * divergence
    torch.autograd.backward(loss)
    trained = [p for p in vae.parameters() if p.requires_grad]
    torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
    for optimiser in optimisers:
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return float(((rebuilt.detach() - pictures) ** 2).mean())


def _save(vae: Any, optimisers: list[torch.optim.Optimizer], step: int, seconds: float, state: Path) -> None:
    values = [optimiser.state_dict() for optimiser in optimisers]
    save_state(state, {"vae": vae.state_dict(), "optimisers": values, "step": step, "seconds": seconds})
    vae.save_pretrained(state.parent)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.vae --init BASE/vae --out RUN/vae --decoder-only --minutes 40")
def vae_command(
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write; needed unless --minutes is 0.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="The autoencoder to start from; default: from scratch.")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", help="Minutes to train, over all continuations.")] = 60.0,
    decoder_only: Annotated[bool, typer.Option("--decoder-only", help="Leave the encoder unchanged.")] = False,
    batch: Annotated[int, typer.Option("--batch", help="Pictures in each step.")] = 8,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")] = 2e-3,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, …")] = "cpu",
) -> None:
    """Train the autoencoder, or only its decoder, and measure it on unseen pictures."""
    if minutes and out is None:
        raise typer.BadParameter("--out is needed to train")
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    from diffusers import AutoencoderKL

    vae = build_vae() if init is None else AutoencoderKL.from_pretrained(init, low_cpu_mem_usage=False).float()
    vae = vae.to(device, memory_format=torch.channels_last)
    say(f"before: {measure(vae)} dB")
    if minutes and out is not None:
        train(vae, VaeTraining(minutes, batch, rate, decoder_only), out)
        say(f"after: {measure(vae)} dB")


if __name__ == "__main__":
    run(app)
