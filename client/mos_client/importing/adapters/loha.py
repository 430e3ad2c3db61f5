"""LoHa, the Hadamard product of two low-rank changes: ΔW = (alpha / rank) · (B₁A₁) ∘ (B₂A₂).

`hada_w1_a` is B₁ and `hada_w1_b` is A₁. A convolution may have a Tucker core in each of the two;
its outer factors then have the rank as their first axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mos_client.importing.adapters.scaling import Scaling


def change(factors: Mapping[str, Tensor], scaling: Scaling, shape: Sequence[int]) -> Tensor:
    """Return ΔW; its rank is up to the square of the file's."""
    first, second = (product(factors, f"hada_w{k}", f"hada_t{k}") for k in (1, 2))
    return scaling.scale(factors["hada_w1_b"].shape[0]) * first * second


def product(factors: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """Return B·A of the factors called `name`, or the product with the Tucker core between them."""
    B, A = factors[f"{name}_a"], factors[f"{name}_b"]
    if core not in factors:
        return B @ A
    return torch.einsum("p q y x, p o, q i -> o i y x", factors[core], B, A)
