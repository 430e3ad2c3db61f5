"""One embedding per word, fitted so that a model draws as with its layer-wise words.

Word layer k of the UNet reads the text features F_k = E(words of layer k); another tool gives every
layer the features F(e) of one embedding e per word. E has the change of its weights attached, and
so has the UNet. The mean over the layers, where the fit starts, minimises nothing that is drawn.

text         min_e  Σ_k Σ_prompts ‖(F(e) - F_k) [K_k; V_k]ᵀ‖² / ‖F_k [K_k; V_k]ᵀ‖²

             [K_k; V_k] are the weights of the keys and values that read word layer k. Without
             the UNet, in seconds: L-BFGS.

predictions  min_e  E ‖ε(x_t, F(e)) - ε(x_t, F_1, …, F_n)‖²

             x_t are the noisy latents that the layer-wise words themselves lead through while
             they draw the contexts `RECORDED`. A backward pass through the UNet for each step:
             Adam, from the solution of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.attention import conditioned
from mos_common.base_model import Base
from mos_common.conditioning import Conditioning, read_prompts
from mos_common.drawing import Drawing, denoise, generators_of, noise_from, scheduler_for
from mos_common.edlora import LowRank, attached
from mos_common.errors import RequestError
from mos_common.exporting.words import mean_words
from mos_common.progress import CountProgress
from mos_common.prompts import RECORDED, about
from mos_common.words import TokenIds, encode_pooled, encode_token_ids, tokenise

TEXT_ITERATIONS = 25
DENOISING_STEPS = 8  # of the drawings whose noisy latents are recorded
PREDICTION_STEPS = 60
BATCH = 4
DRAWN_TOGETHER = 4  # contexts
SMALL_UNET = 50e6  # parameters; the largest for which a CPU predicts noise in seconds


class Fit(StrEnum):
    """The way in which the one embedding of a word is made."""

    MEAN = "mean"
    TEXT = "text"
    PREDICTIONS = "predictions"


def usual_fit(base: Base) -> Fit:
    """Return `predictions` where that takes seconds to a minute: on a GPU, or for a small UNet."""
    size = sum(parameter.numel() for parameter in base.unet.parameters())
    return Fit.PREDICTIONS if base.device.type != "cpu" or size <= SMALL_UNET else Fit.TEXT


def fit_words(
    base: Base,
    changes: Mapping[str, LowRank],
    token: str,
    words: Float[Tensor, "layers words width"],
    fit: Fit,
    on_step: CountProgress | None = None,
) -> Float[Tensor, "1 words width"]:
    """Return one embedding per word, float32 on the CPU; the same inputs give the same result."""
    start = mean_words(words)
    if fit is Fit.MEAN or len(words) == 1:
        return start.cpu()
    words, start = words.to(base.device), start.to(base.device)
    with attached(base, changes), torch.enable_grad():
        fitted = _fit_text(base, token, words, start)
        if fit is Fit.PREDICTIONS:
            fitted = _fit_predictions(base, token, words, fitted, on_step)
    return fitted.float().cpu()


def _fit_text(base: Base, token: str, words: Tensor, start: Tensor) -> Tensor:
    texts = _texts(base, token, words, _contexts(base, token, words))
    with torch.no_grad():
        targets = encode_token_ids(base, texts, {token: words}).float()
    reads = [weights.T @ weights for weights in _keys_and_values(base)]
    sizes = [_quadratic(targets[:, k], gram) for k, gram in enumerate(reads)]
    fitted = start.clone().requires_grad_()
    optimizer: Any = torch.optim.LBFGS(  # its `step` has no types
        [fitted], max_iter=TEXT_ITERATIONS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        features = encode_token_ids(base, texts, {token: fitted})[:, 0].float()
        parts = [_quadratic(features - targets[:, k], gram) / sizes[k] for k, gram in enumerate(reads)]
        mean = torch.stack(parts).mean()
        torch.autograd.backward(mean)
        return mean

    optimizer.step(loss)
    return fitted.detach()


def _fit_predictions(base: Base, token: str, words: Tensor, start: Tensor, on_step: CountProgress | None) -> Tensor:
    recorded = record_predictions(base, token, words, _contexts(base, token, words))
    texts = recorded.texts
    fitted = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([fitted], lr=base.preset.learning_rate_words)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, PREDICTION_STEPS)
    order = _in_random_order(len(texts) * len(recorded.times))
    for step in range(PREDICTION_STEPS):
        rows = [divmod(next(order), len(texts)) for _ in range(BATCH)]
        chosen = [texts[prompt] for _, prompt in rows]
        vocabulary = {token: fitted}
        features, pooled = encode_token_ids(base, chosen, vocabulary), encode_pooled(base, chosen, vocabulary)
        with conditioned(base, Conditioning(features, pooled=pooled)) as unet:
            predicted = unet.predict(
                torch.stack([recorded.noisy[time][prompt] for time, prompt in rows]),
                torch.stack([recorded.times[time] for time, _ in rows]),
            )
            target = torch.stack([recorded.predicted[time][prompt] for time, prompt in rows])
            loss = (predicted.float() - target.float()).square().mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
        optimizer.step()
        decay.step()
        if on_step:
            on_step(step + 1, PREDICTION_STEPS)
    return fitted.detach()


@dataclass
class Recorded:
    """The inputs and predictions of the UNet at each time: one row for each text."""

    texts: list[TokenIds]
    times: list[Tensor]
    noisy: list[Float[Tensor, "texts c h w"]]
    predicted: list[Float[Tensor, "texts c h w"]]


@torch.no_grad()
def record_predictions(
    base: Base, token: str, words: Float[Tensor, "layers words width"], contexts: Sequence[str], first_seed: int = 0
) -> Recorded:
    """Draw the contexts with layer-wise words, a few at a time, from one seed after the other."""
    numbers = range(len(contexts))
    parts = [
        _record(base, token, words, [(contexts[i], first_seed + i) for i in numbers[first : first + DRAWN_TOGETHER]])
        for first in numbers[::DRAWN_TOGETHER]
    ]
    count = range(len(parts[0].times))
    return Recorded(
        [text for part in parts for text in part.texts],
        parts[0].times,
        [torch.cat([part.noisy[time] for part in parts]) for time in count],
        [torch.cat([part.predicted[time] for part in parts]) for time in count],
    )


@torch.no_grad()
def prediction_error(base: Base, token: str, words: Float[Tensor, "layers words width"], recorded: Recorded) -> float:
    """Return the mean square by which other words change the recorded predictions."""
    vocabulary = {token: words}
    features = encode_token_ids(base, recorded.texts, vocabulary)
    pooled, errors = encode_pooled(base, recorded.texts, vocabulary), []
    with conditioned(base, Conditioning(features, pooled=pooled)) as unet:
        for time, noisy, expected in zip(recorded.times, recorded.noisy, recorded.predicted, strict=True):
            errors.append((unet.predict(noisy, time).float() - expected.float()).square().mean())
    return float(torch.stack(errors).mean())


def _record(base: Base, token: str, words: Tensor, drawn: Sequence[tuple[str, int]]) -> Recorded:
    how, contexts, seeds = (
        Drawing(steps=DENOISING_STEPS),
        [context for context, _ in drawn],
        [seed for _, seed in drawn],
    )
    found = Recorded(_texts(base, token, words, contexts), [], [], [])

    def keep(_module: object, inputs: tuple[Any, ...], output: Any) -> None:
        noisy, time = inputs
        found.times.append(time)
        found.noisy.append(noisy[-len(drawn) :].clone())  # the rows before them are unconditional
        found.predicted.append(output.sample[-len(drawn) :].clone())

    prompts = [about(context, token) for context in contexts]
    conditioning = read_prompts(base, prompts, {token: words}, guidance=base.preset.guidance)
    generators = generators_of(seeds)
    noise = noise_from(base, generators, base.picture_size, base.picture_size)
    handle = base.unet.register_forward_hook(keep)
    try:
        denoise(base, noise, conditioning, scheduler_for(base, how), how.steps, generators)
    finally:
        handle.remove()
    return found


def _contexts(base: Base, token: str, words: Tensor) -> list[str]:
    """Return the contexts in which a base, however short its texts, reads the whole concept."""
    read = []
    for context in RECORDED:
        with suppress(RequestError):
            tokenise(base, about(context, token), {token: words})
            read.append(context)
    return read


def _texts(base: Base, token: str, words: Tensor, contexts: Sequence[str]) -> list[TokenIds]:
    return [tokenise(base, about(context, token), {token: words}) for context in contexts]


def _keys_and_values(base: Base) -> list[Float[Tensor, "rows width"]]:
    """Return the weights that read each word layer, above each other."""
    weights: dict[int, list[Tensor]] = {}
    for cross in base.layout.cross_attentions:
        weights.setdefault(cross.word_layer, []).extend([cross.module.to_k.weight, cross.module.to_v.weight])
    return [torch.cat(weights[k]).float() for k in sorted(weights)]


def _quadratic(rows: Float[Tensor, "prompts tokens width"], gram: Float[Tensor, "width width"]) -> Float[Tensor, ""]:
    return ((rows @ gram) * rows).sum()


def _in_random_order(count: int) -> Iterator[int]:
    """Yield the numbers below `count` in one random order after the other, always the same."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
