"""The nearest change of a given rank, by the singular value decomposition."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.edlora import LowRank

# Up to this many rows or columns the decomposition is exact. Above, a randomised one is many times
# faster and keeps practically as much.
EXACT_UP_TO = 768
OVERSAMPLING = 32
POWER_ITERATIONS = 6


def nearest(change: LowRank | Tensor, rank: int) -> LowRank:
    """Return the change of at most `rank` that is nearest to a change in the Frobenius norm."""
    return _of_matrix(change.flatten(1), rank) if isinstance(change, Tensor) else _of_pair(change, rank)


def square_norm(change: LowRank | Tensor) -> float:
    """Return ‖ΔW‖²; of a pair without forming the product: ‖BA‖² = ⟨BᵀB, AAᵀ⟩."""
    if isinstance(change, Tensor):
        return float(change.double().square().sum())
    A, B = change.A.double(), change.B.double()
    return change.scale**2 * float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0))


def _of_pair(pair: LowRank, rank: int) -> LowRank:
    """ΔW = s·B·A = Q_B (s·R_B·R_Aᵀ) Q_Aᵀ: the singular values are those of the small core."""
    QB, RB = torch.linalg.qr(pair.B.double())
    QA, RA = torch.linalg.qr(pair.A.double().T)
    U, sigma, Vt = torch.linalg.svd(pair.scale * (RB @ RA.T))
    kept, roots = min(rank, len(sigma)), sigma[:rank].sqrt()
    A, B = roots[:, None] * (Vt[:kept] @ QA.T), (QB @ U[:, :kept]) * roots
    return LowRank(A.float(), B.float(), float(kept))


def _of_matrix(matrix: Tensor, rank: int) -> LowRank:
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= EXACT_UP_TO or rank > min(matrix.shape) // 4:
        B = _leading(matrix.double(), rank)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # the same file gives the same concept
            U, _, _ = torch.svd_lowrank(matrix.float(), rank + OVERSAMPLING, niter=POWER_ITERATIONS)
        B = U[:, :rank]
    return LowRank((B.T @ matrix.to(B.dtype)).float(), B.float(), float(rank))


def _leading(matrix: Float[Tensor, "rows columns"], rank: int) -> Float[Tensor, "rows rank"]:
    """Return the first left singular vectors U, exactly: U Uᵀ·matrix is the nearest of that rank.

    They are the eigenvectors of the smaller of the two Grams, which takes a fraction of the time of
    the whole decomposition.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix).eigenvectors[:, -rank:]
    if wide:
        return vectors
    left: Tensor = torch.linalg.qr(matrix @ vectors).Q
    return left
