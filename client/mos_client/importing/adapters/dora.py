"""DoRA: the low-rank change turns the weight, and a trained magnitude m gives it its length.

    W' = m · (W + ΔW) / ‖W + ΔW‖     so the change is     W' - W

The norm is that of each output's weights (PEFT, LyCORIS), or of each input's (OneTrainer, and
LyCORIS with `wd_on_output` off); the shape of m says which. The inner change may be a LoRA, a LoHa
or a LoKr. W is the base's own weight, so the same file is another change on another base.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mos_common.errors import ConceptError


def decomposed(change: Tensor, weight: Tensor, magnitude: Tensor) -> Tensor:
    """Return W' - W in the shape of the weight, from the inner change ΔW of the same shape.

    Raises:
        ConceptError: the magnitudes are neither one for each output nor one for each input.

    """
    d_out, d_in = weight.shape[:2]
    others = (1,) * (weight.ndim - 2)
    if magnitude.shape[0] == magnitude.numel() == d_out:
        axis, lengths = 0, magnitude.reshape(d_out, 1, *others)
    elif magnitude.shape[0] == 1 and magnitude.numel() == d_in:
        axis, lengths = 1, magnitude.reshape(1, d_in, *others)
    else:
        raise ConceptError(
            f"a DoRA's magnitude has shape {tuple(magnitude.shape)}; expected {d_out} numbers, one for each output, "
            f"or (1, {d_in}), one for each input"
        )
    turned = weight + change
    norm = turned.square().sum(dim=[k for k in range(weight.ndim) if k != axis], keepdim=True).sqrt()
    return torch.where(norm > 0, lengths / norm, 0.0) * turned - weight
