"""The paper's fusion of a layer, as an oracle (section 3.3, equation 4).

Activations are stored, and L-BFGS starts from the base weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fuse_layer(W0: Tensor, changes: Sequence[Tensor], rows: Sequence[Tensor], steps: int) -> Tensor:
    """Approximate argmin_W Σi ‖Xi (W - Wi)ᵀ‖²/mi with Wi = W0 + ΔWi by `steps` steps from W0.

    The activations Xi and the targets Xi Wiᵀ are stored. History 25, strong Wolfe line search.
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
