"""Gradient fusion by a direct, dense implementation, as an oracle.

Weights are changed in place, prompts encoded one by one, every activation stored, and the dense
least squares solved. It uses nothing of `mos_server`, and of `mos_common` only layers and prompts.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import Concept
from mos_common.layers import Group
from mos_common.prompts import about

Rows = dict[str, Tensor]  # layer name -> all rows it read, float64


def dense(concept: Concept) -> dict[str, Tensor]:
    """Return ΔW of every layer."""
    return {
        name: pair.alpha / pair.A.shape[0] * pair.B.double() @ pair.A.double() for name, pair in concept.pairs.items()
    }


@contextmanager
def added(base: Base, changes: Mapping[str, Tensor]) -> Iterator[None]:
    """Add ΔW to the weights of the base; restore a copy of the old weights afterwards."""
    modules = {layer.name: layer.module for layer in base.layout.attention}
    before = {name: modules[name].weight.detach().clone() for name in changes}
    try:
        for name, change in changes.items():
            modules[name].weight.data = (before[name].double() + change).to(before[name].dtype)
        yield
    finally:
        for name in changes:
            modules[name].weight.data.copy_(before[name])


@contextmanager
def storing(base: Base, group: Group, kept: Tensor | slice) -> Iterator[dict[str, list[Tensor]]]:
    """Store every input row of the layers of a group, by layer."""
    stored: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        layer.module.register_forward_hook(
            lambda _module, inputs, _out, name=layer.name: stored[name].append(
                inputs[0][kept].double().reshape(-1, inputs[0].shape[-1])
            )
        )
        for layer in base.layout.attention
        if layer.group is group
    ]
    try:
        yield stored
    finally:
        for handle in handles:
            handle.remove()


def encode(base: Base, prompt: str, concept: Concept | None, layer: int) -> tuple[Tensor, list[int], int]:
    """Return features (tokens x width) for one layer, positions of the words, end of the text."""
    tokenizer, ids, places = base.tokenizer, [base.tokenizer.bos_token_id], []
    for i, piece in enumerate(prompt.split(concept.name) if concept else [prompt]):
        if i:
            places += range(len(ids), len(ids) + concept.words[0].shape[1])
            ids += [0] * concept.words[0].shape[1]
        ids += tokenizer(piece, add_special_tokens=False).input_ids if piece.strip() else []
    end = len(ids)
    ids += [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * (base.text_length - end - 1)
    assert len(ids) == base.text_length

    def put_words(_module: object, _inputs: object, embedded: Tensor) -> Tensor:
        embedded = embedded.clone()
        for place, word in zip(places, concept.words[0][layer] if places else [], strict=True):
            embedded[0, place] = word
        return embedded

    handle = base.text_encoder.get_input_embeddings().register_forward_hook(put_words)
    try:
        return base.text_encoder(torch.tensor([ids])).last_hidden_state[0], places, end
    finally:
        handle.remove()


def positions(kind: str, places: list[int], end: int, length: int) -> list[int]:
    """Return the token positions that count."""
    if kind == "all":
        return list(range(length))
    return list(range(end + 1)) if kind == "text" or not places else [*places, end]


@torch.no_grad()
def rows_of(
    base: Base,
    group: Group,
    concept: Concept | None,
    prompts: Sequence[str],
    changes: Mapping[str, Tensor],
    *,
    kind: str,
    steps: int,
    guidance: float,
    first_seed: int,
) -> Rows:
    """Return the input rows of every layer of a group for a concept's prompts, under `changes`."""
    subject = "" if concept is None else concept.name if concept.words else concept.class_word
    prompts = [about(prompt, subject) for prompt in prompts] if concept else list(prompts)
    concept = concept if concept and concept.words else None
    with added(base, changes):
        if group is Group.SPATIAL:
            return _joined(_drawn(base, prompts, concept, steps, guidance, first_seed))
        return _joined(_read(base, group, prompts, concept, kind))


def _read(base: Base, group: Group, prompts: Sequence[str], concept: Concept | None, kind: str) -> Iterator[dict]:
    for prompt in prompts:
        for k, name in enumerate(cross.name for cross in base.layout.cross_attentions):
            if group is Group.TEXT and k and not concept:
                break  # such a prompt has one encoding
            features, places, end = encode(base, prompt, concept, k)
            kept = positions(kind, places, end, base.text_length)
            if group is Group.CROSS:
                yield {f"unet.{name}.{part}": [features[kept].double()] for part in ("to_k", "to_v")}
                continue
            mask = torch.zeros(1, base.text_length, dtype=torch.bool)
            mask[0, kept] = True
            with storing(base, group, mask) as stored:
                encode(base, prompt, concept, k)
            yield stored


def _drawn(
    base: Base, prompts: Sequence[str], concept: Concept | None, steps: int, guidance: float, first_seed: int
) -> Iterator[dict]:
    """Draw prompts one by one; the unconditional pass is separate and not stored."""
    modules = [cross.module for cross in base.layout.cross_attentions]
    for i, prompt in enumerate(prompts):
        texts = [
            [encode(base, *words, k)[0][None] for k in range(len(modules))] for words in ((prompt, concept), ("", None))
        ]

        def predict(latents: Tensor, t: Tensor, text: list[Tensor]) -> Tensor:
            handles = [
                module.register_forward_pre_hook(
                    lambda _m, args, kwargs, own=own: (args, kwargs | {"encoder_hidden_states": own}), with_kwargs=True
                )
                for module, own in zip(modules, text, strict=True)
            ]
            try:
                return base.unet(latents, t, encoder_hidden_states=text[0]).sample
            finally:
                for handle in handles:
                    handle.remove()

        size = base.unet.config.sample_size
        noise = torch.Generator().manual_seed(first_seed + i)
        latents = torch.randn(1, base.unet.config.in_channels, size, size, generator=noise).to(base.dtype)
        scheduler = copy.deepcopy(base.scheduler)
        scheduler.set_timesteps(steps)
        latents = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            with storing(base, Group.SPATIAL, slice(None)) as stored:
                conditional = predict(scheduler.scale_model_input(latents, t), t, texts[0])
            yield stored
            unconditional = predict(scheduler.scale_model_input(latents, t), t, texts[1])
            predicted = unconditional + guidance * (conditional - unconditional)
            latents = scheduler.step(predicted, t, latents).prev_sample


def _joined(parts: Iterator[dict]) -> Rows:
    stored: dict[str, list[Tensor]] = defaultdict(list)
    for part in parts:
        for name, rows in part.items():
            stored[name] += rows
    return {name: torch.cat(rows) for name, rows in stored.items()}


def solve(
    rows: Sequence[Tensor], changes: Sequence[Tensor], ordinary: Tensor, *, ridge: float, preserve: float
) -> Tensor:
    """argmin_Δ Σi ‖Xi (Δ - ΔWi)ᵀ‖²/mi + μ ‖X0 Δᵀ‖²/m0 + λ·(tr S/d_in)·‖Δ‖² of one tall system."""
    blocks = [X / len(X) ** 0.5 for X in rows]
    targets = [block @ change.T for block, change in zip(blocks, changes, strict=True)]
    blocks.append(preserve**0.5 * ordinary / len(ordinary) ** 0.5)
    damping = ridge * sum(float(block.square().sum()) for block in blocks) / ordinary.shape[1]
    blocks.append(damping**0.5 * torch.eye(ordinary.shape[1], dtype=torch.float64))
    targets.append(torch.zeros(len(ordinary) + ordinary.shape[1], changes[0].shape[0], dtype=torch.float64))
    return torch.linalg.lstsq(torch.cat(blocks), torch.cat(targets), driver="gelsd").solution.T
