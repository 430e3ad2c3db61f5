"""An adapter of `tiny`: a T2I-Adapter that adds what it reads of a condition to the frozen UNet.

    python -m mos_tiny.recipe.control.train sketch --data D --out RUN --minutes 25

`mos_tiny.recipe.control.conditions` wrote D, and `mos_tiny.recipe.latents` D/latents. The folder
RUN is the adapter in diffusers' layout and in half precision.

The adapter is diffusers' `T2IAdapter` in the form of XL, whose UNet begins with a level without
attention as `tiny`'s does. It has no residual blocks: features are linear in the condition, and
the UNet's own layers after each of them are not. That keeps a sketch's adapter at 75 kB; with one
block each it has 900 kB.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mos_common.errors import StateError
from mos_common.files import replacing_folder
from mos_common.flags import SeedType
from mos_common.shell import run, say
from mos_tiny import base_folder
from mos_tiny.recipe.compose import WIDTHS
from mos_tiny.recipe.control.conditions import Kind
from mos_tiny.recipe.pack import SCHEDULE
from mos_tiny.recipe.trainer import HELD_OUT, MAX_SNR, WIDE_EVERY, TrainingSet

DROPPED = 0.3  # more captions are left out than of the base, so that the condition itself says more
DECAY = 0.995
CHANNELS = {Kind.SKETCH: 1, Kind.KEYPOINTS: 3}


def build_adapter(kind: Kind, unet: Any) -> Any:
    """Build an untrained adapter for a UNet: what it adds is 0."""
    from diffusers import T2IAdapter

    adapter = T2IAdapter(
        in_channels=CHANNELS[kind],
        channels=list(unet.config.block_out_channels),
        num_res_blocks=0,
        downscale_factor=8,  # pixels to a cell of the UNet's second level, where the first feature is added
        adapter_type="full_adapter_xl",
    )
    for name, parameter in adapter.named_parameters():
        if name.startswith("adapter.conv_in") or name.endswith("bias"):
            nn.init.zeros_(parameter)
    return adapter


class AdapterTrainer:
    """An adapter in training beside the frozen UNet, and the running average of its weights."""

    def __init__(
        self,
        adapter: Any,
        unet: Any,
        encode: Callable[[Tensor], Float[Tensor, "captions tokens width"]],
        data: TrainingSet,
        conditions: dict[int, UInt8[np.ndarray, "n height width 3"]],
        seed: int = 0,
    ) -> None:
        from diffusers import DDPMScheduler

        self.adapter, self.average = adapter, deepcopy(adapter)
        self._unet, self._data, self._conditions, self._encode = unet, data, conditions, encode
        self._kept = torch.as_tensor(DDPMScheduler(**SCHEDULE, clip_sample=False).alphas_cumprod)
        self._adam = torch.optim.AdamW(adapter.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
        self._chance = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.step = self.seen = 0

    def step_once(self, batch: int, rate: float) -> float:
        """Train one step, and return the unweighted loss before it."""
        width = WIDTHS[1] if self.step % WIDE_EVERY == WIDE_EVERY - 1 else WIDTHS[0]
        count = batch if width == WIDTHS[0] else batch // 2
        which = torch.from_numpy(self._chance.integers(0, len(self._data.latents[width]) - HELD_OUT, count))
        t = ((torch.rand(1) + torch.arange(count) / count) % 1 * len(self._kept)).long()
        error, kept = self._error(self.adapter, width, which, t, torch.rand(count) < DROPPED)
        snr = kept / (1 - kept).clamp(min=1e-6)
        weight = (snr.clamp(max=MAX_SNR) + 0.25) / (snr + 1)  # as the base was trained
        torch.autograd.backward((error * weight).mean())
        self._adam.param_groups[0]["lr"] = rate
        nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.step += 1
        self.seen += count
        decay = min(DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for own, new in zip(self.average.parameters(), self.adapter.parameters(), strict=True):
                own.lerp_(new, 1 - decay)
        return float(error.detach().mean())

    @torch.no_grad()
    def held_out_loss(self, *, adapter: bool = True) -> float:
        """Return the loss on held-out square pictures, with the average adapter or without any."""
        width, count = WIDTHS[0], HELD_OUT // 2
        which = torch.arange(len(self._data.latents[width]) - count, len(self._data.latents[width]))
        t = (torch.arange(count) / count * len(self._kept)).long()
        noise = torch.randn(self._data.latents[width][:count].shape, generator=torch.Generator().manual_seed(0))
        none = torch.zeros(count, dtype=torch.bool)
        return float(self._error(self.average if adapter else None, width, which, t, none, noise)[0].mean())

    def _error(
        self,
        adapter: Any | None,
        width: int,
        which: Int[Tensor, " count"],
        t: Int[Tensor, " count"],
        dropped: Tensor,
        noise: Tensor | None = None,
    ) -> tuple[Float[Tensor, "count c h w"], Float[Tensor, "count 1 1 1"]]:
        """Return the squared error of v with the adapter's features added, and ᾱ at t."""
        latents = self._data.latents[width][which].float()
        noise = torch.randn_like(latents) if noise is None else noise
        kept = self._kept[t][:, None, None, None]
        noisy = (kept.sqrt() * latents + (1 - kept).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        wanted = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        captions = self._data.captions[width][which].clone()
        captions[dropped] = self._data.empty
        features = None
        if adapter is not None:
            pixels = torch.from_numpy(self._conditions[width][which.numpy()]).permute(0, 3, 1, 2).float() / 255
            features = list(adapter(pixels[:, : adapter.config.in_channels]))
        predicted = self._unet(noisy, t, self._encode(captions), down_intrablock_additional_residuals=features).sample
        return (predicted - wanted) ** 2, kept


def save_adapter(adapter: Any, folder: Path) -> None:
    """Write an adapter in half precision, atomically."""
    half = torch.nn.Module.to(deepcopy(adapter), dtype=torch.float16)
    with replacing_folder(folder) as beside:
        half.save_pretrained(beside)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Example: python -m mos_tiny.recipe.control.train sketch --data build/sketch --out build/adapter")
def train_command(
    kind: Annotated[Kind, typer.Argument(help="What the adapter reads.")],
    data: Annotated[Path, typer.Option("--data", help="The folder that mos_tiny.recipe.control.conditions wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The adapter's folder.")],
    minutes: Annotated[float, typer.Option("--minutes", help="How long to train; the rate falls with the time.")] = 25,
    batch: Annotated[int, typer.Option("--batch", help="Square pictures in each step; half as many wide ones.")] = 32,
    rate: Annotated[float, typer.Option("--rate", help="Learning rate.")] = 2e-3,
    base: Annotated[Path | None, typer.Option("--base", help="The base; default: the embedded one.")] = None,
    seed: Annotated[int, typer.Option("--seed", click_type=SeedType(), help="Random seed, from 0.")] = 0,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 1,
) -> None:
    """Train an adapter."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    folder = base or base_folder()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).float()
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    unet.requires_grad_(False).eval().to(memory_format=torch.channels_last)
    encoder.requires_grad_(False).eval()
    trainer = AdapterTrainer(
        build_adapter(kind, unet),
        unet,
        lambda captions: encoder(captions)[0],
        TrainingSet.read(data / "latents", tokenizer),
        read_conditions(data),
        seed,
    )
    say(f"held out without an adapter {trainer.held_out_loss(adapter=False):.4f}")
    begun, losses = time.monotonic(), []
    while (share := (time.monotonic() - begun) / (minutes * 60)) < 1:
        falling = 0.5 * (1 + math.cos(math.pi * share)) * 0.97 + 0.03
        losses.append(trainer.step_once(batch, rate * falling * min(1.0, (trainer.step + 1) / 60)))
        if trainer.step % 100 == 0:
            held = trainer.held_out_loss()
            say(f"{trainer.seen} seen, {share:.0%}, loss {np.mean(losses[-100:]):.4f}, held out {held:.4f}")
            save_adapter(trainer.average, out)
    save_adapter(trainer.average, out)
    say(f"{trainer.seen} seen in all, held out {trainer.held_out_loss():.4f}")


def read_conditions(data: Path) -> dict[int, UInt8[np.ndarray, "n height width 3"]]:
    """Read the conditions of a folder.

    Raises:
        StateError: it has none.

    """
    try:
        return {width: np.load(data / f"condition_{width}.npy", allow_pickle=False) for width in WIDTHS}
    except OSError as error:
        raise StateError(f"no conditions in {data}: run mos_tiny.recipe.control.conditions first") from error


if __name__ == "__main__":
    run(app)
