"""XᵀX of one batch, so exact that a ridge of 1e-9 still means something.

A float32 product loses what lies below 1e-7 of the largest second moment: a small ridge would then solve for rounding errors. A CPU
multiplies in float64 at half the speed of float32. A consumer GPU does so at a 32nd or 64th; there X is cut into three slices of
8 bits (after Ozaki et al. 2012, doi 10.1007/s11075-011-9478-1): products of slices are whole numbers, so a float32 sum of up to
256 of them is exact, and six float32 products replace one in float64. What comes out is the Gram of X rounded 2^-25 below the
largest element of each column: positive semidefinite, as a Gram must be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 256  # 2^8 rows of products below 2^16: no sum passes the 2^24 up to which float32 knows every whole number
STEP = 256.0  # 8 bits a slice


def gram(X: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """XᵀX in float64, on the CPU or on the GPU that X is on."""
    if X.device.type == "cpu":
        wide = X.double()  # which autocast leaves alone
        return wide.T @ wide
    return sliced_gram(X)


def sliced_gram(X: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """XᵀX from float32 products alone."""
    width = X.shape[1]
    total = _float64(torch.zeros(width, width, device=X.device))
    with _float32_products(X.device.type):
        for start in range(0, len(X), ROWS):
            rows = X[start : start + ROWS].float()
            largest = rows.abs().amax(dim=0)
            scale = torch.exp2(torch.ceil(torch.log2(torch.where(largest > 0, largest, 1.0))))
            high, rest = _slice(rows / scale)
            middle, rest = _slice(rest)
            low, _ = _slice(rest)
            HH, HM, HL = (_float64(high.T @ other) for other in (high, middle, low))
            MM, ML, LL = _float64(middle.T @ middle), _float64(middle.T @ low), _float64(low.T @ low)
            product = HH + (HM + HM.T) / STEP + (HL + HL.T + MM) / STEP**2 + (ML + ML.T) / STEP**3 + LL / STEP**4
            scale64 = _float64(scale) / STEP
            total += scale64[:, None] * product * scale64
    return total


def _slice(values: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers h with values ≈ h/256, and what is left of values·256 - h."""
    scaled = values * STEP
    whole = scaled.round()
    return whole, scaled - whole


def _float64(values: Tensor) -> Tensor:
    return (values.cpu() if values.device.type == "mps" else values).double()  # Apple's GPUs have no float64


@contextmanager
def _float32_products(device_type: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
