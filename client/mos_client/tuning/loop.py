"""The tuning loop (paper section 3.2) as a generator of steps; it can be saved at every yield."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mos_client.pictures.examples import Example
from mos_client.pictures.marks import texts_around
from mos_client.tuning.batches import Batch, next_batch
from mos_client.tuning.loss import attention_loss, cell_weights, noise_loss
from mos_client.tuning.memory_plan import Plan
from mos_client.tuning.parameters import frozen_pair, initial_pair, initial_words, trained, tuned_layers
from mos_client.tuning.reach import Reach, words_in_caption
from mos_client.tuning.settings import TuningSettings
from mos_common.attention import WatchedWords, conditioned
from mos_common.base_model import Base
from mos_common.conditioning import Conditioning
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_common.layers import Group
from mos_common.words import TokenIds, Vocabulary, encode_pooled, encode_token_ids, tokenise_parts

V = "<v>"


@dataclass(frozen=True)
class Step:
    """A finished optimiser step: its number from 1, the number of steps in all, and its loss."""

    number: int
    total: int
    loss: float


class Tuning:
    """The state of one tuning run: parameters, running average, optimiser, generator, steps done.

    Iterate over `steps()` to run it. The result is the average (`config.averaging`), which can be
    read after any step.
    """

    def __init__(
        self,
        base: Base,
        class_word: str,
        examples: Sequence[Example],
        config: TuningSettings,
        plan: Plan | None = None,
    ) -> None:
        self.base, self.class_word, self.examples, self.config, self.done = base, class_word, examples, config, 0
        self.plan = plan or Plan(config.batch)
        self.generator = torch.Generator().manual_seed(config.seed)
        words = initial_words(base, class_word, config.word_count, self.generator, layerwise=config.method.layerwise)
        self.words = None if words is None else nn.Parameter(words)
        self.layers = [
            layer
            for layer in tuned_layers(base, config.method)
            if layer.group is not Group.TEXT or config.learning_rate_text
        ]
        make, by = (frozen_pair, _of_pictures(examples)) if config.frozen_directions else (initial_pair, self.generator)
        self.pairs = {layer.name: make(layer, config.rank, by) for layer in self.layers}
        self.optimiser = self.plan.optimiser(self._parameter_groups())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.norm_stops = [config.norm_stop * float(table.float().norm(dim=1).median()) for table in base.token_tables]
        self.reach = Reach(base, words_in_caption(base, class_word, config))
        self._texts: dict[str, TokenIds] = {}
        self._features: dict[TokenIds, Tensor] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """All tuned parameters, in the order of the optimiser's groups."""
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    @property
    def vocabulary(self) -> Vocabulary:
        """The embeddings that `<v>` stands for."""
        return {} if self.words is None else {V: self.words}

    def layerwise_words(self) -> Tensor:
        """Return the words (layers, words, width) as in a file, also where layers share one."""
        assert self.words is not None
        return self.words.detach().cpu().expand(self.base.layout.word_layers, -1, -1).clone()

    def steps(self) -> Generator[Step, None, None]:
        """Run the remaining steps."""
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(self.base.scheduler.config, clip_sample=False)
        while self.done < self.config.steps:
            with self.plan.applied(self.base), trained(self.layers, self.pairs):
                loss = self._step(scheduler)
            self.done += 1
            yield Step(self.done, self.config.steps, loss)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running average into the parameters within the block."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self.assign(self.averages)
        try:
            yield
        finally:
            self.assign(own)

    @torch.no_grad()
    def assign(self, values: Sequence[Tensor]) -> None:
        """Set every parameter to a value."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def changes(self) -> dict[str, LowRank]:
        """Return the current pairs, detached, with alpha = rank."""
        alpha = float(self.config.rank)
        return {
            name: LowRank(A.detach().cpu().clone(), B.detach().cpu().clone(), alpha)
            for name, (A, B) in self.pairs.items()
        }

    def _step(self, scheduler: Any) -> float:
        for group in self.optimiser.param_groups:
            group["lr"] = group["full_rate"] * self.config.rate_at(self.done)
        times = int(scheduler.config.num_train_timesteps)
        batch = next_batch(self.examples, self.config, times, self.generator, self.reach)
        total = 0.0
        for part in batch.parts(self.plan.micro_batch):
            share = len(part.captions) / len(batch.captions)
            total += self._add_gradients(scheduler, part, share)
        self._stop_long_words()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        keep = min(self.config.averaging, self.done / (self.done + 10))  # the first steps are no part of the average
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1 - keep)
        return total

    def _add_gradients(self, scheduler: Any, batch: Batch, share: float) -> float:
        """Add the gradients of `share` times the loss of a batch; return that part of the loss."""
        base, device, weight = self.base, self.base.device, self.config.attention_weight
        texts = [self._tokenised(caption) for caption in batch.captions]
        masks = None if batch.masks is None else batch.masks.to(device)
        watched = None
        if weight and masks is not None and all(text.words for text in texts):
            places = [[position for position, _, _ in text.words][: self.config.word_count] for text in texts]
            watched = WatchedWords(torch.tensor(places, device=device))
        weights = (
            None
            if masks is None or self.config.background_weight == 1
            else cell_weights(masks, self.config.background_weight)
        )
        in_half = torch.autocast(device.type, torch.bfloat16, enabled=base.dtype != torch.float32)
        with in_half:
            conditioning = Conditioning(self._encoded(texts), pooled=encode_pooled(base, texts, self.vocabulary))
        latents, noise, times = (x.to(device) for x in (batch.latents, batch.noise, batch.times))
        with conditioned(base, conditioning, watched=watched) as unet:
            with in_half:
                loss = noise_loss(unet, scheduler, latents, noise, times, weights)
            if watched is not None and masks is not None:
                loss = loss + weight * attention_loss(watched, masks)
            loss = share * loss
            if not torch.isfinite(loss):
                raise ConceptError(f"the loss became {loss.item()} at step {self.done + 1}: lower the learning rates")
            torch.autograd.backward(loss)
        return float(loss.detach())

    def _encoded(self, texts: Sequence[TokenIds]) -> Tensor:
        """Encode texts; each text once only if nothing that the text encoder reads is tuned."""
        if self.words is not None or any(layer.group is Group.TEXT for layer in self.layers):
            return encode_token_ids(self.base, texts, self.vocabulary)
        for text in texts:
            if text not in self._features:
                with torch.no_grad():
                    self._features[text] = encode_token_ids(self.base, [text], {})[0].to(self.base.device)
        return torch.stack([self._features[text] for text in texts])

    def _tokenised(self, caption: str) -> TokenIds:
        if caption not in self._texts:
            texts = texts_around(caption)
            if self.words is None:
                texts = [self.class_word.join(texts)]
            self._texts[caption] = tokenise_parts(self.base, texts, [V] * (len(texts) - 1), self.vocabulary)
        return self._texts[caption]

    def _stop_long_words(self) -> None:
        """Stop words whose norm has reached the stop: longer ones drown the rest of the prompt."""
        if self.words is None or not self.config.norm_stop:
            return
        assert self.words.grad is not None
        widths = [table.shape[1] for table in self.base.token_tables]
        for part, gradient, stop in zip(
            torch.split(self.words.detach(), widths, dim=-1),
            torch.split(self.words.grad, widths, dim=-1),
            self.norm_stops,
            strict=True,
        ):
            gradient.masked_fill_(part.norm(dim=-1, keepdim=True) >= stop, 0)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        config = self.config
        text = {layer.name for layer in self.layers if layer.group is Group.TEXT}
        of_text = [p for name, pair in self.pairs.items() if name in text for p in pair if p.requires_grad]
        of_unet = [p for name, pair in self.pairs.items() if name not in text for p in pair if p.requires_grad]
        of_words = [] if self.words is None else [self.words]
        rates = (config.learning_rate_words, config.learning_rate_text, config.learning_rate_unet)
        return [
            {"params": list(parameters), "lr": rate, "full_rate": rate}
            for parameters, rate in zip((of_words, of_text, of_unet), rates, strict=True)
            if parameters
        ]


def _of_pictures(examples: Sequence[Example]) -> torch.Generator:
    """Return a generator seeded by the pictures: participants with one seed choose differently."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.views[0].latent.contiguous().numpy().data)
    return torch.Generator().manual_seed(int(digest.hexdigest()[:12], 16))
