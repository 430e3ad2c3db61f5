"""The paper's own road to a fused layer, as an oracle: stored activations, and L-BFGS from the base weight (section 3.3, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fuse_layer(W0: Tensor, changes: Sequence[Tensor], rows: Sequence[Tensor], steps: int) -> Tensor:
    """argmin_W Σi ‖Xi (W - Wi)ᵀ‖²/mi with Wi = W0 + ΔWi, as far as `steps` steps of L-BFGS come when they start at W0.

    The activations Xi are stored, and so are the targets Xi Wiᵀ. History 25, strong Wolfe line search.
    """
    targets = [X @ (W0 + change).T for X, change in zip(rows, changes, strict=True)]
    W = W0.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [W],
        max_iter=steps,
        max_eval=10 * steps,
        history_size=25,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-14,
        tolerance_change=1e-18,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([(X @ W.T - Y).square().sum() / len(X) for X, Y in zip(rows, targets, strict=True)]).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return W.detach()
