"""ED-LoRA tuning (paper section 3.2): layer-wise words V = (V_rand, V_class) and a low-rank pair on every attention linear.

Only the words and the pairs are parameters. V_rand starts as noise with the spread of the base's own token table, V_class as the
class word; both have one embedding per cross-attention layer. Of each pair, A starts random and B at zero: the first step sees
the untouched base.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mos_client.config import TuningConfig
from mos_client.dataset import Example
from mos_client.loss import noise_loss, spread_times
from mos_common.attention import layerwise_attention
from mos_common.base_model import BaseModel
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.layers import Group, Layer, concept_layers, cross_attentions
from mos_common.words import TokenIds, encode_token_ids, tokenise

V = "<v>"
NORM_STOP = (
    1.4  # times the median norm of the base's tokens; 0.55 on Stable Diffusion 1.5, as in the paper's repository
)


@dataclass(frozen=True)
class Step:
    """One optimiser step done: its number from 1, of how many, and its loss."""

    number: int
    total: int
    loss: float


class Tuning:
    """The state of one tuning run: parameters, optimiser, generator, steps done. Iterate over `steps()` to run it."""

    def __init__(self, base: BaseModel, class_word: str, examples: Sequence[Example], config: TuningConfig) -> None:
        self.base, self.config, self.done = base, config, 0
        self.generator = torch.Generator().manual_seed(config.seed)
        self.words = nn.Parameter(initial_words(base, class_word, self.generator))
        self.layers = concept_layers(base)
        self.pairs = {layer.name: initial_pair(layer, config.rank, self.generator) for layer in self.layers}
        self.optimiser = torch.optim.AdamW(self._parameter_groups(), weight_decay=0.01)
        self.latents = torch.stack([example.latent for example in examples]).to(base.device, torch.float32)
        self.captions = [[_tokenised(base, c, self.words) for c in example.captions] for example in examples]
        self.norm_stop = NORM_STOP * float(base.token_table.float().norm(dim=1).median())

    def steps(self) -> Generator[Step, None, None]:
        """Run the remaining steps; each yield is a moment at which the state may be saved."""
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(self.base.scheduler.config, clip_sample=False)
        with layerwise_attention(self.base), trained(self.layers, self.pairs):
            while self.done < self.config.steps:
                loss = self._step(scheduler)
                self.done += 1
                yield Step(self.done, self.config.steps, loss)

    def changes(self) -> dict[str, LowRank]:
        """The pairs as they are now, detached, alpha = rank."""
        alpha = float(self.config.rank)
        return {name: LowRank(A.detach().cpu(), B.detach().cpu(), alpha) for name, (A, B) in self.pairs.items()}

    def _step(self, scheduler: Any) -> float:
        config, base, generator = self.config, self.base, self.generator
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_rate"] * (1 - self.done / config.steps)
        chosen = _batch(len(self.latents), config.batch, generator)
        texts = [self.captions[i][_integer(len(self.captions[i]), generator)] for i in chosen]
        latents = self.latents[chosen]
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        noise = noise + config.noise_offset * torch.randn((*latents.shape[:2], 1, 1), generator=generator).to(
            latents.device
        )
        times = spread_times(config.batch, int(scheduler.config.num_train_timesteps), generator).to(latents.device)
        with torch.autocast(base.device.type, torch.bfloat16, enabled=base.dtype != torch.float32):
            features = encode_token_ids(base, texts, {V: self.words})
            loss = noise_loss(base, scheduler, latents, noise, times, features)
        if not torch.isfinite(loss):
            raise ConceptError(f"the loss became {loss.item()} at step {self.done + 1}: lower the learning rates")
        loss.backward()  # type: ignore[no-untyped-call]
        self._stop_long_words()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _stop_long_words(self) -> None:
        """Words whose norm has reached the stop keep their place: a longer one drowns the rest of the prompt."""
        assert self.words.grad is not None
        too_long = self.words.detach().norm(dim=-1, keepdim=True) >= self.norm_stop
        self.words.grad.masked_fill_(too_long, 0)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        config = self.config
        text = {layer.name for layer in self.layers if layer.group is Group.TEXT}
        of_text = [p for name, pair in self.pairs.items() if name in text for p in pair]
        of_unet = [p for name, pair in self.pairs.items() if name not in text for p in pair]
        rates = (config.learning_rate_words, config.learning_rate_text, config.learning_rate_unet)
        return [
            {"params": list(parameters), "lr": rate, "full_rate": rate}
            for parameters, rate in zip(([self.words], of_text, of_unet), rates, strict=True)
        ]


def initial_words(base: BaseModel, class_word: str, generator: torch.Generator) -> Tensor:
    """(layers, 2, width): V_rand as noise of the token table's spread, V_class as the class word (the mean of its tokens)."""
    table = base.token_table.float().cpu()
    ids = base.tokenizer(class_word, add_special_tokens=False).input_ids
    if not ids:
        raise ConceptError(
            f"class word {class_word!r} has no letters this base model reads: give a word like cat, person or car"
        )
    layers, width = len(cross_attentions(base)), table.shape[1]
    rand = torch.randn(width, generator=generator) * table.std()
    words = torch.stack([rand, table[ids].mean(dim=0)])
    return words.expand(layers, 2, width).clone().to(base.device)


def initial_pair(layer: Layer, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    """A (rank x d_in) of unit-variance outputs for unit-variance inputs, and B = 0 (d_out x rank)."""
    device = layer.module.weight.device
    A = torch.randn(rank, layer.d_in, generator=generator) / layer.d_in**0.5
    return nn.Parameter(A.to(device)), nn.Parameter(torch.zeros(layer.d_out, rank, device=device))


@contextmanager
def trained(layers: Sequence[Layer], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within: every layer gives W x + B A x (alpha = rank), differentiable in A and B."""

    def add(pair: tuple[Tensor, Tensor]) -> Any:
        A, B = pair

        def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            rows = inputs[0].to(A.dtype) if not torch.is_autocast_enabled() else inputs[0]
            return output + ((rows @ A.T) @ B.T).to(output.dtype)

        return hook

    handles = [layer.module.register_forward_hook(add(pairs[layer.name])) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tokenised(base: BaseModel, caption: str, words: Tensor) -> TokenIds:
    import re

    return tokenise(base, re.sub(r"\bV\b", V, caption), {V: words})


def _batch(count: int, batch: int, generator: torch.Generator) -> list[int]:
    """`batch` picture numbers: whole shuffled rounds, so that no picture is left out for long."""
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-batch // count))]
    return [int(i) for i in torch.cat(rounds)[:batch]]


def _integer(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))
