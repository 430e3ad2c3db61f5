"""What a tuning may change: the concept's words and a low-rank pair on every attention linear, as the method asks.

Only these are parameters; the base, its token table included, is frozen. V_rand starts as noise with the spread of the base's own
token table, V_class as the class word. Of each pair, A starts random and B at zero: the first step sees the untouched base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mos_client.tuning.settings import Method
from mos_common.base_model import Base
from mos_common.errors import ConceptError
from mos_common.layers import Group, Layer

Pair = tuple[nn.Parameter, nn.Parameter]


def tuned_layers(base: Base, method: Method) -> list[Layer]:
    """The layers that get a pair."""
    if not method.has_pairs:
        return []
    layers = list(base.layout.attention)
    return [layer for layer in layers if layer.group is Group.CROSS] if method is Method.CUSTOM_DIFFUSION else layers


def initial_words(
    base: Base, class_word: str, count: int, generator: torch.Generator, *, layerwise: bool
) -> Tensor | None:
    """(layers, words, width), or (1, words, width) where all layers share one: V_rand as noise, V_class as the class word.

    V_class is the mean of the class word's tokens and comes last. One word is V_class alone; none is None.

    Raises:
        ConceptError: the class word has no tokens.

    """
    ids = list(base.tokenizer(class_word, add_special_tokens=False).input_ids)
    if not ids:
        raise ConceptError(
            f"class word {class_word!r} has no letters this base model reads: give a word like cat, person or car"
        )
    if not count:
        return None
    spreads = torch.cat([part.float().std().expand(part.shape[1]).cpu() for part in base.token_tables])
    random = [torch.randn(base.word_width, generator=generator) * spreads for _ in range(count - 1)]
    words = torch.stack([*random, base.token_rows(ids).mean(dim=0)])
    return words.expand(base.layout.word_layers if layerwise else 1, *words.shape).clone().to(base.device)


def initial_pair(layer: Layer, rank: int, generator: torch.Generator) -> Pair:
    """A (rank x d_in) of unit-variance outputs for unit-variance inputs, and B = 0 (d_out x rank)."""
    device = layer.module.weight.device
    A = torch.randn(rank, layer.d_in, generator=generator) / layer.d_in**0.5
    return nn.Parameter(A.to(device)), nn.Parameter(torch.zeros(layer.d_out, rank, device=device))


def frozen_pair(layer: Layer, rank: int, own: torch.Generator) -> Pair:
    """As `initial_pair`, with an A that stays: rows of an orthogonal matrix that only the layer's name decides, chosen by `own`."""
    device = layer.module.weight.device
    named = int(hashlib.sha256(layer.name.encode()).hexdigest()[:12], 16)
    square = torch.randn(layer.d_in, layer.d_in, generator=torch.Generator().manual_seed(named))
    Q, _ = torch.linalg.qr(square.double())
    A = Q[torch.randperm(layer.d_in, generator=own)[:rank]].float()
    return (
        nn.Parameter(A.to(device), requires_grad=False),
        nn.Parameter(torch.zeros(layer.d_out, rank, device=device)),
    )


@contextmanager
def trained(layers: Sequence[Layer], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within: every layer gives W x + B A x (alpha = rank), differentiable in A and B."""

    def add(pair: tuple[Tensor, Tensor]) -> Any:
        A, B = pair

        def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            rows = inputs[0].to(A.dtype) if not torch.is_autocast_enabled(inputs[0].device.type) else inputs[0]
            return output + ((rows @ A.T) @ B.T).to(output.dtype)

        return hook

    handles = [layer.module.register_forward_hook(add(pairs[layer.name])) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
