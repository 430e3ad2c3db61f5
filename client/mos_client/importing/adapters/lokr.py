"""LoKr, a Kronecker product: ΔW = (alpha / rank) · W₁ ⊗ W₂.

Each of the two is written whole (`lokr_w1`) or as a product (`lokr_w1_a`, `lokr_w1_b`); W₂ of a
convolution may have a Tucker core. If both are whole, there is no rank, and the scale is 1; PEFT
alone keeps alpha/rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mos_client.importing.adapters.loha import product
from mos_client.importing.adapters.scaling import Scaling


def change(factors: Mapping[str, Tensor], scaling: Scaling, shape: Sequence[int]) -> Tensor:
    """Return ΔW."""
    small, large = (
        factors[name] if name in factors else product(factors, name, "lokr_t2") for name in ("lokr_w1", "lokr_w2")
    )
    ranks = [factors[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in factors]
    small = small.reshape(*small.shape, *(1,) * (large.ndim - 2))
    return scaling.scale(next(iter(ranks), None)) * torch.kron(small.contiguous(), large.contiguous())
