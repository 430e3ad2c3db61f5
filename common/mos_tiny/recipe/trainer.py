"""The training of UNet and text encoder: weights, their running average, optimisers, one step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mos_common.errors import StateError
from mos_tiny.recipe.compose import WIDTHS
from mos_tiny.recipe.muon import Muon, split_matrices
from mos_tiny.recipe.pack import SCHEDULE
from mos_tiny.recipe.states import load_state, save_state
from mos_tiny.recipe.tokenizer import POSITIONS

TEXT_WIDTH = 128
HELD_OUT = 256  # latents at the end of each width that are not for training
WIDE_EVERY = 6  # every sixth batch is of wide pictures
DROPPED = 0.1  # share of captions left out, for guidance
MAX_DECAY = 0.998  # largest decay of the running average
MAX_SNR = 5.0
FINE = 0.3  # the share of time steps with the least noise, where details are decided


@dataclass(frozen=True)
class TrainingSet:
    """Latents and captions by picture width; `empty` is the empty caption."""

    latents: Mapping[int, Float[Tensor, "n c h w"]]
    captions: Mapping[int, Int[Tensor, "n positions"]]
    empty: Int[Tensor, " positions"]

    @classmethod
    def read(cls, folder: Path, tokenizer: Any) -> TrainingSet:
        """Read what `mos_tiny.recipe.latents` wrote.

        Raises:
            StateError: The folder has no latents.

        """
        latents: dict[int, Tensor] = {}
        captions: dict[int, Tensor] = {}
        for width in WIDTHS:
            stored = load_state(folder / f"lat_{width}.pt")
            if not isinstance(stored, Tensor):
                raise StateError(f"no latents in {folder}: run `python -m mos_tiny.recipe.latents` first")
            latents[width] = stored
            texts = json.loads((folder / f"train_{width}.json").read_text())
            captions[width] = token_ids(tokenizer, texts[: len(stored)])
        return cls(latents, captions, token_ids(tokenizer, [""])[0])


def token_ids(tokenizer: Any, captions: Sequence[str]) -> Int[Tensor, "n positions"]:
    """Return the token ids of captions, padded to the same length."""
    ids = tokenizer(list(captions), padding="max_length", max_length=POSITIONS, truncation=True).input_ids
    return torch.tensor(ids)


def build_unet() -> Any:
    """Build an untrained UNet in Stable Diffusion 1.x layout, with three levels.

    The two lower levels have cross-attention.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 96, 160),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(1, 3, 5),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def build_text_encoder(tokenizer: Any) -> Any:
    """Build an untrained CLIP text encoder of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=POSITIONS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_act="quick_gelu",
        )
    )
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "token_embedding" in name or "position_embedding" in name:
                parameter.normal_(0, 0.1)  # with CLIP's 0.02 all prompts are alike for the first hour
    return encoder


class Trainer:
    """UNet and text encoder in training, after `step` steps and `seen` pictures.

    `dtype` is what both compute in; weights, their average, the loss and the optimisers stay in
    float32.
    """

    def __init__(
        self,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        data: TrainingSet,
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from diffusers import DDPMScheduler

        self.dtype = dtype
        self.unet = unet.to(device, memory_format=torch.channels_last)
        self.text_encoder, self.tokenizer, self.data, self.device = text_encoder.to(device), tokenizer, data, device
        self.seen = self.step = 0
        self._kept = torch.as_tensor(DDPMScheduler(**SCHEDULE, clip_sample=False).alphas_cumprod)
        (unet_matrices, unet_rest), (text_matrices, text_rest) = split_matrices(unet), split_matrices(text_encoder)
        self._parameters = [*unet.parameters(), *text_encoder.parameters()]
        self._average = [p.detach().clone() for p in self._parameters]
        rest = [{"params": unet_rest}, {"params": text_rest}]
        self._adamw = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, foreach=True)
        self._muon = Muon([{"params": unet_matrices}, {"params": text_matrices}], lr=0.0)
        self.reseed()

    def reseed(self) -> None:
        """Seed by the number of pictures seen, so that a continuation does not repeat them."""
        self._chance = np.random.default_rng(self.seen + 1)
        torch.manual_seed(self.seen + 1)

    def load(self, path: Path) -> bool:
        """Load weights, average and optimisers from a state; return False if there is none.

        Raises:
            StateError: It is the state of another model.

        """
        state = load_state(path, self.device)
        if state is None:
            return False
        shapes = [[tuple(p.shape) for p in part] for part in (self._parameters, state["params"])]
        if shapes[0] != shapes[1]:
            raise StateError(f"{path} is the state of another model: give another --out, or the --init it began with")
        with torch.no_grad():
            torch._foreach_copy_([p.data for p in self._parameters], state["params"])
            torch._foreach_copy_(self._average, state["ema"])
        self._adamw.load_state_dict(state["opt"])
        self._muon.load_state_dict(state["muon"])
        self.seen, self.step = state["seen"], state["step"]
        return True

    def save(self, path: Path) -> None:
        """Write the state that `load` reads."""
        optimisers = {"opt": self._adamw.state_dict(), "muon": self._muon.state_dict()}
        weights = {"params": [p.detach() for p in self._parameters], "ema": self._average}
        save_state(path, {**weights, **optimisers, "seen": self.seen, "step": self.step})

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the running average of the weights, in eval mode, within the context."""
        own = [p.detach().clone() for p in self._parameters]
        torch._foreach_copy_([p.data for p in self._parameters], self._average)
        modules: tuple[nn.Module, ...] = (self.unet, self.text_encoder)
        try:
            for module in modules:
                module.eval()
            yield
        finally:
            torch._foreach_copy_([p.data for p in self._parameters], own)
            for module in modules:
                module.train()

    def step_once(self, batch: int, rate: float, fine: float = 0.0) -> float:
        """Train one step, and return the unweighted loss before it.

        A batch is `batch` square pictures or half as many wide ones. A share `fine` of it gets
        little noise and weight 1, since min-SNR weights nearly ignore details.
        """
        for optimiser in (self._adamw, self._muon):
            unet, text = optimiser.param_groups
            unet["lr"], text["lr"] = rate, rate / 2
        width = WIDTHS[1] if self.step % WIDE_EVERY == WIDE_EVERY - 1 else WIDTHS[0]
        count = batch if width == WIDTHS[0] else batch // 2
        which = torch.from_numpy(self._chance.integers(0, len(self.data.latents[width]) - HELD_OUT, count))
        captions = self.data.captions[width][which].clone()
        captions[torch.rand(count) < DROPPED] = self.data.empty
        t = ((torch.rand(1) + torch.arange(count) / count) % 1 * len(self._kept)).long()[torch.randperm(count)]
        finely = round(fine * count)
        t[:finely] = (t[:finely] * FINE).long()
        latents = self.data.latents[width][which].float()
        error, kept = self._error(latents, captions, t, torch.randn_like(latents))
        snr = kept / (1 - kept).clamp(min=1e-6)
        # min-SNR for v-prediction; 0.25 is for the noisiest steps, where the layout is decided
        weight = (snr.clamp(max=MAX_SNR) + 0.25) / (snr + 1)
        weight[:finely] = 1
        torch.autograd.backward((error * weight).mean())
        nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        for optimiser in (self._adamw, self._muon):
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.seen += count
        decay = min(MAX_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self._average, [p.data for p in self._parameters], 1 - decay)
        return float(error.detach().mean())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Return the loss on held-out latents, with the same times and noise in each call."""
        latents = self.data.latents[WIDTHS[0]][-HELD_OUT:].float()
        captions = self.data.captions[WIDTHS[0]][-HELD_OUT:]
        t = (torch.arange(len(latents)) / len(latents) * len(self._kept)).long()
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        parts = torch.split(torch.arange(len(latents)), 64)
        return float(torch.cat([self._error(latents[i], captions[i], t[i], noise[i])[0].cpu() for i in parts]).mean())

    def _error(
        self, latents: Tensor, captions: Tensor, t: Tensor, noise: Tensor
    ) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n 1 1 1"]]:
        """Return ᾱ at t and, first, the squared error of v = √ᾱ·noise - √(1-ᾱ)·latents."""
        latents, noise = latents.to(self.device), noise.to(self.device)
        kept = self._kept[t][:, None, None, None].to(self.device)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        wanted = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        plain = self.dtype == torch.float32
        with nullcontext() if plain else torch.autocast(noisy.device.type, self.dtype):
            texts = self.text_encoder(captions.to(self.device))[0]
            predicted = self.unet(noisy, t.to(self.device), texts).sample
        return (predicted.float() - wanted) ** 2, kept
