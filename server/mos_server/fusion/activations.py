"""Regenerate what the layers read: nobody's pictures are needed, a concept's own model produces its activations from its prompts.

Every function here runs the model as the caller has set it up (own or fused changes attached) and returns second moments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from mos_common.attention import TextMemory, layerwise_attention
from mos_common.base_model import BaseModel
from mos_common.drawing import Drawing, denoise, initial_noise, scheduler_for
from mos_common.layers import Group, Layer
from mos_common.words import TokenIds, Vocabulary, encode_prompts, encode_rows, encode_token_ids, text_rows, tokenise
from mos_server.config import FusionSettings, Rows
from mos_server.fusion.moments import Moments, recording


def record_group(
    group: Group,
    base: BaseModel,
    layers: Sequence[Layer],
    prompts: Sequence[str],
    seeds: Sequence[int],
    vocabulary: Vocabulary,
    settings: FusionSettings,
) -> Moments:
    """Second moments of everything that the layers of one group read under `prompts` (and, for the UNet, `seeds`)."""
    with torch.no_grad():
        if group is Group.SPATIAL:
            return record_spatial(base, layers, prompts, seeds, vocabulary, settings)
        texts = [tokenise(base, prompt, vocabulary) for prompt in prompts]
        record = record_text if group is Group.TEXT else record_cross
        return record(base, layers, texts, vocabulary, settings.rows)


def record_text(
    base: BaseModel, layers: Sequence[Layer], texts: Sequence[TokenIds], vocabulary: Vocabulary, kind: Rows
) -> Moments:
    """What the text encoder's attention reads, over the encodings of every prompt for every cross-attention layer."""
    moments, rows = Moments(), text_rows(base, texts)
    mask = chosen_positions(rows.texts, kind).to(base.device)
    with recording(layers, moments, {"rows": mask}):
        encode_rows(base, rows, vocabulary)
    return moments


def record_cross(
    base: BaseModel, layers: Sequence[Layer], texts: Sequence[TokenIds], vocabulary: Vocabulary, kind: Rows
) -> Moments:
    """What keys and values read: cross-attention layer k reads encoding k, so each layer has moments of its own."""
    moments = Moments()
    features = encode_token_ids(base, texts, vocabulary)
    mask = chosen_positions(texts, kind).to(features.device)
    for k, reads in enumerate(dict.fromkeys(layer.reads for layer in layers)):
        moments.add(reads, features[:, k][mask])
    return moments


def record_spatial(
    base: BaseModel,
    layers: Sequence[Layer],
    prompts: Sequence[str],
    seeds: Sequence[int],
    vocabulary: Vocabulary,
    settings: FusionSettings,
) -> Moments:
    """What the rest of the UNet's attention reads while the prompts are drawn; rows of the unconditional half are left out."""
    moments = Moments()
    how = Drawing(steps=settings.steps)
    height, width = how.sized_for(base)
    guidance = settings.guidance or base.preset.guidance
    with layerwise_attention(base):
        for start in range(0, len(prompts), settings.batch):
            part = list(prompts[start : start + settings.batch])
            unconditional = [""] * len(part) if guidance != 1 else []
            features = encode_prompts(base, unconditional + part, vocabulary)
            noise = initial_noise(base, seeds[start : start + settings.batch], height, width)
            memory = TextMemory(features, keep=True)
            with recording(layers, moments, {"rows": slice(len(unconditional), None)}):
                denoise(base, noise, memory, scheduler_for(base, how), settings.steps, guidance)
    return moments


def chosen_positions(texts: Sequence[TokenIds], kind: Rows) -> Bool[Tensor, "texts tokens"]:
    """Which token positions count: "words" = concept words and the first end, "text" = all up to that end, "all" = padding too.

    A text that names no concept has no words to choose; it counts as "text" then.
    """
    mask = torch.zeros(len(texts), len(texts[0].ids), dtype=torch.bool)
    for row, text in enumerate(texts):
        if kind == "all":
            mask[row] = True
        elif kind == "text" or not text.words:
            mask[row, : text.end + 1] = True
        else:
            mask[row, [position for position, _, _ in text.words]] = True
            mask[row, text.end] = True
    return mask
