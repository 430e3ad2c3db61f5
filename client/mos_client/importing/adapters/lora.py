"""LoRA and LoCon: ΔW = (alpha / rank) · B·A.

A convolution's A reads the kernel's pixels too. With a Tucker core M, A and B are 1x1 and

    ΔW[o, i, y, x] = (alpha / rank) · Σ B[o, p] M[p, q, y, x] A[q, i]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mos_client.importing.adapters.scaling import Scaling
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError


def change(factors: Mapping[str, Tensor], scaling: Scaling, shape: Sequence[int]) -> LowRank:
    """Return ΔW as a pair over the layer's flattened inputs.

    Raises:
        ConceptError: the factors do not form a pair.

    """
    A, B = factors["A"], factors["B"]
    if A.ndim > 2 and tuple(A.shape[2:]) not in ((1, 1), tuple(shape[2:])):
        raise ConceptError(
            f"a factor of shape {tuple(A.shape)} is of a convolution larger than 1x1, the layer has {tuple(shape)}"
        )
    if "mid" in factors:
        if factors["mid"].shape[2:] != tuple(shape[2:]):
            raise ConceptError(f"a Tucker core of shape {tuple(factors['mid'].shape)} in a layer of {tuple(shape)}")
        A = torch.einsum("p q y x, q i -> p i y x", factors["mid"], A.flatten(1))
    A, B = A.flatten(1), B.flatten(1)
    if A.shape[0] != B.shape[1]:
        raise ConceptError(
            f"factors of shape {tuple(factors['A'].shape)} and {tuple(factors['B'].shape)} do not form a pair"
        )
    return LowRank(A, B, scaling.alpha_for(A.shape[0]))
