"""Regenerate the inputs of layers, without any pictures.

A concept's own model produces its activations from its prompts. Every function runs the model as
the caller has set it up (own or fused changes attached) and records into a sink.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.drawing import Drawing, draw_latents
from mos_common.layers import Group, Layer
from mos_common.words import TokenIds, Vocabulary, encode_rows, encode_token_ids, text_rows, tokenise
from mos_server.fusion.moments import Choice, recording
from mos_server.fusion.recording_settings import RecordingSettings
from mos_server.fusion.row_sink import RowSink

log = logging.getLogger(__name__)
Weights = Float[Tensor, "texts tokens"]
Sink = TypeVar("Sink", bound=RowSink)


def record_group(
    group: Group,
    base: Base,
    layers: Sequence[Layer],
    prompts: Sequence[str],
    seeds: Sequence[int],
    vocabulary: Vocabulary,
    settings: RecordingSettings,
    sink: Sink,
) -> Sink:
    """Record all inputs of the layers of one group into `sink`, and return it finished.

    The model runs under `prompts` and, for the UNet, `seeds`.

    Raises:
        FusionError: an activation was not finite; the message names the input.

    """
    with torch.no_grad():
        if group is Group.SPATIAL:
            record_spatial(base, layers, prompts, seeds, vocabulary, settings, sink)
            return sink.finished()
        # A base that is guided away from zeros encodes no empty text, and zeros add nothing.
        encoded = settings.unconditional and not base.force_zeros_for_empty_prompt
        unconditional = [""] if encoded and "" not in prompts else []
        texts = [tokenise(base, prompt, vocabulary) for prompt in [*prompts, *unconditional]]
        record = record_text if group is Group.TEXT else record_cross
        record(base, layers, texts, vocabulary, settings.row_weights, sink)
        return sink.finished()


def record_text(
    base: Base,
    layers: Sequence[Layer],
    texts: Sequence[TokenIds],
    vocabulary: Vocabulary,
    kinds: tuple[float, float, float],
    sink: RowSink,
) -> None:
    """Record the text encoder's inputs, for every prompt and every cross-attention layer."""
    rows = text_rows(base, texts, vocabulary)
    weights = position_weights(rows.texts, kinds).to(base.device)
    with recording(layers, sink, _weighted(weights), float(weights.sum())):
        encode_rows(base, rows, vocabulary)


def record_cross(
    base: Base,
    layers: Sequence[Layer],
    texts: Sequence[TokenIds],
    vocabulary: Vocabulary,
    kinds: tuple[float, float, float],
    sink: RowSink,
) -> None:
    """Record the inputs of keys and values.

    Each transformer of the UNet reads an encoding of its own, so each has its own moments.
    """
    features = encode_token_ids(base, texts, vocabulary)
    weights = position_weights(texts, kinds).to(features.device)
    cross = dict.fromkeys(layer.reads for layer in base.layout.by_group[Group.CROSS])
    wanted = {layer.reads for layer in layers}
    for k, reads in enumerate(cross):
        if reads not in wanted:
            continue
        sink.add(reads, _weighted(weights)(features[:, k]), float(weights.sum()))


def record_spatial(
    base: Base,
    layers: Sequence[Layer],
    prompts: Sequence[str],
    seeds: Sequence[int],
    vocabulary: Vocabulary,
    settings: RecordingSettings,
    sink: RowSink,
) -> None:
    """Record the inputs of the rest of the UNet while the prompts are drawn.

    The unconditional half counts only if `settings.unconditional` is set. `settings.batch` prompts
    are drawn at a time, or fewer if the GPU's memory is too small.
    """
    waiting = [slice(start, start + settings.batch) for start in range(0, len(prompts), settings.batch)]
    while waiting:
        part = waiting.pop(0)
        try:
            drawn = sink.fresh()  # discarded if memory runs out while it is filled
            _record_drawing(base, layers, prompts[part], seeds[part], vocabulary, settings, drawn)
            sink.merge(drawn)
        except torch.OutOfMemoryError:
            size = (part.stop - part.start + 1) // 2
            if part.stop - part.start == 1:
                raise
            log.info("out of memory with %d prompts at a time: going on with %d", part.stop - part.start, size)
            waiting = [slice(part.start, part.start + size), slice(part.start + size, part.stop), *waiting]


def _record_drawing(
    base: Base,
    layers: Sequence[Layer],
    prompts: Sequence[str],
    seeds: Sequence[int],
    vocabulary: Vocabulary,
    settings: RecordingSettings,
    sink: RowSink,
) -> None:
    how = Drawing(steps=settings.steps, guidance=settings.guidance)
    with recording(layers, sink, _from_row(0 if settings.unconditional else -len(prompts))):
        draw_latents(base, prompts, seeds, vocabulary=vocabulary, how=how)


def position_weights(texts: Sequence[TokenIds], kinds: tuple[float, float, float]) -> Weights:
    """Return the weight of each token position.

    `kinds` has the weights of concept words with the first end-of-text token, of other text up to
    it, and of padding after it. In a text without a concept all positions up to the end-of-text
    token count as concept words do, or as other text if the weight of words is 0.
    """
    of_words, of_text, of_padding = kinds
    weights = torch.full((len(texts), len(texts[0].ids)), of_padding)
    for row, text in enumerate(texts):
        weights[row, : text.end] = of_text if text.words else of_words or of_text
        weights[row, [position for position, _, _ in text.words]] = of_words
        weights[row, text.end] = of_words if text.words else of_words or of_text
    return weights


def _from_row(first: int) -> Choice:
    return lambda batch: batch[first:].flatten(0, 1)


def _weighted(weights: Weights) -> Choice:
    """Choose rows of positive weight, each times its root: their XᵀX is Σ w x xᵀ."""
    chosen = weights > 0
    roots = weights[chosen].sqrt()[:, None]
    plain = bool((roots == 1).all())
    return lambda batch: (
        batch[chosen] if plain else batch[chosen].to(torch.promote_types(batch.dtype, roots.dtype)) * roots
    )
