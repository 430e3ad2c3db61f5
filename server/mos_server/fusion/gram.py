"""XᵀX of one batch, exact enough for a ridge of 1e-9.

A float32 product loses everything 1e-7 below the largest second moment: a small ridge would then
solve for rounding errors. A CPU multiplies in float64 at half the speed of float32. A consumer GPU
does so at 1/32 or 1/64; there X is cut into three slices of 8 bits (after Ozaki et al. 2012, doi
10.1007/s11075-011-9478-1). Products of slices are whole numbers, so a float32 sum of up to 256 of
them is exact, even on tensor cores in TF32, which hold 11 bits of each factor. The result is the
Gram of X rounded 2^-25 below the largest element of each column. It is positive semidefinite, as a
Gram must be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

ROWS = 256  # 2^8 rows of products below 2^16: no sum passes the 2^24 up to which float32 knows every whole number
STEP = 256.0  # 8 bits a slice
BLOCKS, MOST_NARROW, ROWS_AT_ONCE = 4, 64, 4096
MOST_PARTIAL = 2**25  # float32 numbers of partial sums at a time: 128 MiB


def gram(X: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """Return XᵀX in float64, on the device of X."""
    return wide_gram(X) if X.device.type == "cpu" else sliced_gram(X)


def wide_gram(X: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """Return XᵀX from float64 products of the upper blocks; the lower ones mirror them."""
    width = X.shape[1]
    side = max(MOST_NARROW, -(-width // BLOCKS))
    if len(X) < width or side >= width:  # too little work to be worth the bookkeeping
        wide = X.double()  # which autocast leaves alone
        return wide.T @ wide
    total = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, len(X), ROWS_AT_ONCE):
        wide = X[start : start + ROWS_AT_ONCE].double()
        for first in range(0, width, side):
            total[first : first + side, first:].addmm_(wide[:, first : first + side].T, wide[:, first:])
    upper = total.triu()
    return upper + upper.triu(1).T


def sliced_gram(X: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """Return XᵀX from float32 products alone."""
    largest = X.abs().amax(dim=0).float()
    scale = torch.exp2(torch.ceil(torch.log2(torch.where(largest > 0, largest, 1.0))))
    group = ROWS * max(1, MOST_PARTIAL // X.shape[1] ** 2)
    total = sum(_slices_gram(X[start : start + group].float() / scale) for start in range(0, len(X), group))
    unit = _float64(scale) / STEP
    return unit[:, None] * total * unit


def _slices_gram(X: Float[Tensor, "rows d"]) -> Float[Tensor, "d d"]:
    """Return 256² XᵀX of rows in [-1, 1].

    It is (H + M/256 + L/256²)ᵀ (H + M/256 + L/256²) with whole H, M and L.
    """
    padding = -len(X) % ROWS
    blocks = torch.nn.functional.pad(X, (0, 0, 0, padding)).view(-1, ROWS, X.shape[1])
    H, rest = _slice(blocks)
    M, rest = _slice(rest)
    L, _ = _slice(rest)
    with _exact_products(X.device.type):
        HM, HL, ML = _product(H, M), _product(H, L), _product(M, L)
        same = _product(H, H) + _product(M, M) / STEP**2 + _product(L, L) / STEP**4
    return same + (HM + HM.T) / STEP + (HL + HL.T) / STEP**2 + (ML + ML.T) / STEP**3


def _slice(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers h with values ≈ h/256, and the remainder values·256 - h."""
    scaled = values * STEP
    whole = scaled.round()
    return whole, scaled - whole


def _product(one: Float[Tensor, "blocks rows d"], other: Float[Tensor, "blocks rows d"]) -> Float[Tensor, "d d"]:
    partial = one.transpose(1, 2) @ other  # exact in float32, block by block
    return _float64(partial).sum(dim=0) if partial.device.type == "mps" else partial.sum(dim=0, dtype=torch.float64)


def _float64(values: Tensor) -> Tensor:
    return (values.cpu() if values.device.type == "mps" else values).double()  # Apple's GPUs have no float64


@contextmanager
def _exact_products(device_type: str) -> Iterator[None]:
    """Within: products are in float32 or TF32, whatever torch's settings are elsewhere.

    Both are exact here; half precision is not.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
