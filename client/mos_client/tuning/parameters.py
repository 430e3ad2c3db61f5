"""The tuned parameters: the concept's words, and a low-rank pair on attention linears.

The base, its token table included, is frozen. V_rand starts as noise with the spread of the base's
token table, V_class as the class word. Of each pair, A starts random and B at zero: the first step
sees the untouched base.
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
    """Return the layers that get a pair."""
    if not method.has_pairs:
        return []
    layers = list(base.layout.attention)
    return [layer for layer in layers if layer.group is Group.CROSS] if method is Method.CUSTOM_DIFFUSION else layers


def initial_words(
    base: Base, class_word: str, count: int, generator: torch.Generator, *, layerwise: bool
) -> Tensor | None:
    """Return V_rand as noise and V_class as the class word: (layers, words, width).

    The first axis is 1 if all layers share one embedding. V_class is the mean of the class word's
    tokens and comes last; a single word is V_class alone. Without words the result is None.

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
    """Return A (rank x d_in), which keeps unit variance, and B = 0 (d_out x rank)."""
    device = layer.module.weight.device
    A = torch.randn(rank, layer.d_in, generator=generator) / layer.d_in**0.5
    return nn.Parameter(A.to(device)), nn.Parameter(torch.zeros(layer.d_out, rank, device=device))


def frozen_pair(layer: Layer, rank: int, own: torch.Generator) -> Pair:
    """Return a pair with a frozen A: rows, chosen by `own`, of the layer's orthogonal matrix."""
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
    """Add B A x (alpha = rank) to every layer's output within the block, with gradients."""

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
