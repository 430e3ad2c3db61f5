"""The equation of gradient fusion, and nothing else.

Concept i changed a layer by ΔWi = si·Bi·Ai, and its own prompts feed that layer the rows Xi
(mi x d_in). We want the one change Δ that acts on every concept's rows as that concept's own change
did, and on ordinary rows X0 not at all:

    Δ* = argmin_Δ  Σi wi (‖Xi (Δ - ΔWi)ᵀ‖²/mi + μ ‖X0 Δᵀ‖²/m0)
                   +  λ·(tr S/d_in)·‖Δ - c Σi wi ΔWi‖²

With the second moments Gi = Xiᵀ Xi / mi, S = Σi wi (Gi + μ G0) and R = λ·(tr S/d_in)·I its normal
equation is Δ* (S + R) = Σi wi ΔWi (Gi + c R), so

    Δ* = [B1 … Bn] · M,    M = [w1 s1 A1 (G1 + c R); …; wn sn An (Gn + c R)] (S + R)⁻¹

whose rank is at most Σ ri: nothing of size d_out x d_in is ever formed. (Paper section 3.3,
equation 4, which stops L-BFGS before its optimum; λ → 0, μ = 0 and c = 0 is its objective.) In
directions that no recorded row has, the ridge decides: towards no change at all (c = 0), or towards
a scaled sum of the concepts' own changes, which is the limit of Δ* as λ → ∞.

Where concepts feed a layer alike rows, Δ* answers them with the mean of their changes D̄, and what
tells one from another is lost. **Sharpening** by s asks for s times as much of just that: every
target moves away from the mean, and the objective is otherwise the same,

    Ti = D̄ + s (ΔWi - D̄)  in place of ΔWi,    D̄ = Σi wi ΔWi / W,    W = Σi wi

Since Σi wi Ti = Σi wi ΔWi, and Σi wi Ti Gi = Σi wi ΔWi (Gi + (s - 1)(Gi - Ḡ)) with the mean moment
Ḡ = Σi wi Gi / W, its solution is the one above with moments that stand out from it s times as far:

    M = [w1 s1 A1 (G1 + (s - 1)(G1 - Ḡ) + c R); …] (S + R)⁻¹

So Δ*(s) is also the Δ of least objective (that of s = 1) among all that keep as much of what
differs as it does, Σi wi ⟨Xi Δᵀ, Xi (ΔWi - D̄)ᵀ⟩/mi, with s - 1 half the multiplier of that
constraint: the objective's gradient, Δ (S + R) - Σi wi ΔWi (Gi + c R), is then
(s - 1) Σi wi (ΔWi - D̄) Gi.

The rank is the same. Δ*(s) = Δ*(0) + s (Δ*(1) - Δ*(0)) is linear in s, with Δ*(0) the solution if
everybody's target were D̄. A concept alone is its own mean, and s changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.edlora import LowRank

RIDGES = ("trace", "diagonal")
Inverse = Callable[[Float[Tensor, "ranks d_in"]], Float[Tensor, "ranks d_in"]]


def solve_change(
    S: Float[Tensor, "d_in d_in"],
    left: Float[Tensor, "d_out ranks"],
    right: Float[Tensor, "ranks d_in"],
    *,
    ridge: float,
    ridge_kind: str = "trace",
) -> LowRank:
    """Return Δ* of the equation above, computed in float64.

    `left` is [B1 … Bn], `right` is [w1 s1 A1 G1; …], and `ridge` is λ.
    """
    return refactored(left, damped_inverse(S, ridge, ridge_kind)(right))


def damped_inverse(S: Float[Tensor, "d_in d_in"], ridge: float, ridge_kind: str = "trace") -> Inverse:
    """Return a function that multiplies by (S + λ·(tr S/d_in)·I)⁻¹ from the right.

    It is factored once for all layers that read one input. `ridge_kind` "diagonal" weighs every
    input by its own second moment (λ·diag S) in place of their mean (λ·tr S/d_in); it is solved for
    inputs of unit size, D S D with D = (diag S)^-½. If S + λ… is not positive definite in float64
    (λ below the rounding of S), the limit of λ → 0 is used: the pseudo-inverse.
    """
    S, D, shift = S.double(), torch.ones((), dtype=torch.float64), float(damping(S, ridge)[0])
    damped = S.clone()
    if ridge_kind == "diagonal":
        D, shift = torch.where(S.diagonal() > 0, S.diagonal(), 1.0).rsqrt(), ridge  # 1: an input that is always 0
        damped.mul_(D[:, None]).mul_(D)
    damped.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not int(failed):
        return lambda right: torch.cholesky_solve((right.double() * D).T, factor).T * D
    values, vectors = torch.linalg.eigh(damped)
    rounding = len(S) * torch.finfo(S.dtype).eps * values[-1]
    inverse = torch.where(values > rounding, 1 / values, 0.0)
    return lambda right: (right.double() * D @ vectors) * inverse @ vectors.T * D


def damping(S: Float[Tensor, "d_in d_in"], ridge: float, ridge_kind: str = "trace") -> Float[Tensor, " d_in"]:
    """Return the diagonal of R of the equation above."""
    own = S.diagonal().double()
    return ridge * (own.mean().expand(len(own)) if ridge_kind == "trace" else own)


def refactored(left: Float[Tensor, "d_out ranks"], right: Float[Tensor, "ranks d_in"]) -> LowRank:
    """Return left·right as a balanced pair, cut at its numerical rank.

    [B1 … Bn] itself would cancel badly in low precision, could be wider than the layer, and would
    hand every participant's B to all others.
    """
    return balanced_pair(*singular_triple(left, right))


def singular_triple(
    left: Float[Tensor, "d_out ranks"], right: Float[Tensor, "ranks d_in"]
) -> tuple[Float[Tensor, "d_out rank"], Float[Tensor, " rank"], Float[Tensor, "rank d_in"]]:
    """Return U, σ and Vᵀ of left·right, cut at its numerical rank, which is at least 1.

    It takes QR of both sides, then an SVD of the small core, in float64.
    """
    Ql, Rl = torch.linalg.qr(left.double())
    Qr, Rr = torch.linalg.qr(right.double().T)
    U, sigma, Vt = torch.linalg.svd(Rl @ Rr.T)
    size = max(left.shape[0], right.shape[1])
    kept = max(int((sigma > sigma[:1] * size * torch.finfo(torch.float64).eps).sum()), 1)
    return Ql @ U[:, :kept], sigma[:kept], Vt[:kept] @ Qr.T


def balanced_pair(
    U: Float[Tensor, "d_out rank"], sigma: Float[Tensor, " rank"], Vt: Float[Tensor, "rank d_in"]
) -> LowRank:
    """Return U·diag(σ)·Vᵀ as a pair in float32, with the root of σ in each half."""
    root = sigma.sqrt()
    return LowRank((root[:, None] * Vt).float(), (U * root).float(), float(len(sigma)))


def square_of(pair: LowRank) -> Float[Tensor, "d_in d_in"]:
    """Return ΔᵀΔ."""
    B, A = pair.scale * pair.B.double(), pair.A.double()
    square: Tensor = A.T @ (B.T @ B) @ A
    return square


def energy_of(pair: LowRank, G: Float[Tensor, "d_in d_in"]) -> float:
    """Return ‖X ΔWᵀ‖²/m = tr(ΔW G ΔWᵀ)."""
    return energy_given(pair, pair.scale * pair.A.double() @ G)


def energy_given(pair: LowRank, AG: Float[Tensor, "rank d_in"]) -> float:
    """Return ‖X ΔWᵀ‖²/m = ⟨BᵀB, s² A G Aᵀ⟩, given s A G."""
    B, A = pair.B.double(), pair.scale * pair.A.double()
    return max(float(((B.T @ B) * (AG @ A.T)).sum()), 0.0)


def stacked_left(pairs: Sequence[LowRank]) -> Float[Tensor, "d_out ranks"]:
    """Return [B1 … Bn]."""
    return torch.cat([pair.B.double() for pair in pairs], dim=1)
