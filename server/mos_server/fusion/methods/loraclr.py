"""LoRACLR, contrastive merging (Simsar et al., CVPR 2025, arXiv 2412.09622).

It takes what Mix-of-Show records: the rows Xi that concept i's prompts feed a layer, and the
outputs Yi = Xi (W0 + ΔWi)ᵀ of that concept's own weight. One change Δ is learned by AdamW, from 0
on, so that each concept's outputs Pi = Xi (W0 + Δ)ᵀ come near its own Yi (attract), and stay at
least a margin m away from the nearest of the others' (repel):

    min_Δ  Σi wi/W (‖Pi - Yi‖² + max(0, m - min_j≠i ‖Pi - Yj‖)²)
           + a Σi wi/W mean((Pi - Yi)²) + b ‖Δ‖,    W = Σi wi

‖·‖ is over all rows of a concept, so that the margin is small beside most distances, and a's term
is a small multiple of the first. The best Δ on the way is kept; its rank is that of the layer.

The order of layers, the recorded prompts and the sampling are the paper's of Mix-of-Show, as in
`lbfgs.py`. Concepts are compared row by row, so their words must have as many rows in the published
code; here, what one has more than another takes no part in repelling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.edlora import LowRank
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_common.settings import setting
from mos_server.fusion.layerwise import changed_layers, dense_changes
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.paper_rows import check_memory, rows_of_concepts
from mos_server.fusion.recording_settings import PAPER_PROMPTS, RecordingSettings
from mos_server.fusion.solve import refactored
from mos_server.fusion.statistics import Statistics

# As in the published code. a is no setting: its term is a multiple of the first, and AdamW does not
# see by what an objective is multiplied.
MSE_WEIGHT = 0.1
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True)
class LoraclrSettings:
    """The terms of the loss and the optimiser, as in the published code."""

    method: ClassVar[str] = "loraclr"
    margin: float = setting(0.5, "m, distance that a concept's outputs keep from the nearest other's")
    norm_weight: float = setting(0.001, "b, weight of the norm of the change")
    learning_rate: float = setting(1e-4, "learning rate of AdamW")
    iterations: int = setting(50, "steps of AdamW for each layer")
    steps: int = setting(20, "denoising steps of the sampling that is stored")
    batch: int = setting(16, "prompts that are sampled together")

    def __post_init__(self) -> None:
        if min(self.margin, self.norm_weight) < 0 or self.learning_rate <= 0 or self.iterations < 1:
            raise RequestError(
                f"margin {self.margin}, norm_weight {self.norm_weight}, learning_rate {self.learning_rate}, iterations "
                f"{self.iterations}: expected a learning rate above 0, at least 1 iteration, and nothing below 0"
            )
        _ = self.recording

    @property
    def recording(self) -> RecordingSettings:
        """Mix-of-Show's recording."""
        return RecordingSettings(contexts=PAPER_PROMPTS, rows="words", steps=self.steps, guidance=1.0, batch=self.batch)


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: LoraclrSettings,
    statistics: Statistics,
) -> Solved:
    """Learn a change that keeps each concept's outputs near its own and away from others'.

    Raises:
        FusionError: the stored rows would not fit into memory.
        UnusableConceptError: a concept's forward pass is not finite.

    """
    check_memory(base, concepts, settings.steps, "LoRACLR", statistics.progress)
    solved: dict[str, LowRank] = {}
    for group in Group:
        layers = changed_layers(base, concepts, group)
        if not layers:
            continue
        rows = rows_of_concepts(base, concepts, group, layers, settings.recording, solved)
        for i, layer in enumerate(layers, 1):
            pairs = [named.concept.pairs.get(layer.name) for named in concepts]
            W0 = layer.module.weight.detach().flatten(1).float()
            changes = [change.to(base.device) for change in dense_changes(pairs, layer)]
            X = [stored.of(layer.reads).to(base.device) for stored in rows]
            change = contrastive_layer(W0, changes, X, settings, [weights[named.token] for named in concepts])
            solved[layer.name] = refactored(change.double().cpu(), torch.eye(layer.d_in, dtype=torch.float64))
            statistics.progress(f"{group}: {i}/{len(layers)} layers optimised")
    return Solved(solved)


def contrastive_layer(
    W0: Float[Tensor, "d_out d_in"],
    changes: Sequence[Float[Tensor, "d_out d_in"]],
    rows: Sequence[Float[Tensor, "rows d_in"]],
    settings: LoraclrSettings,
    weights: Sequence[float],
) -> Float[Tensor, "d_out d_in"]:
    """Return the Δ of least loss that AdamW passes, in W0's dtype."""
    own = [X @ (W0 + change).T for X, change in zip(rows, changes, strict=True)]
    shares = torch.tensor(weights, device=W0.device, dtype=W0.dtype) / sum(weights)
    change = torch.zeros_like(W0, requires_grad=True)
    optimizer = torch.optim.AdamW([change], lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    least, best = float("inf"), torch.zeros_like(W0)
    for _ in range(settings.iterations):
        loss = contrastive_loss([X @ (W0 + change).T for X in rows], own, shares, settings)
        loss = loss + settings.norm_weight * change.norm()
        if (reached := float(loss.detach())) < least:
            least, best = reached, change.detach().clone()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return best


def contrastive_loss(
    outputs: Sequence[Float[Tensor, "rows d_out"]],
    own: Sequence[Float[Tensor, "rows d_out"]],
    shares: Float[Tensor, " concepts"],
    settings: LoraclrSettings,
) -> Float[Tensor, ""]:
    """Return the terms of the equation above, but for that of the change; `shares` are wi/W."""
    errors = torch.stack([(P - Y).square().sum() for P, Y in zip(outputs, own, strict=True)])
    means = errors / torch.tensor([Y.numel() for Y in own], device=errors.device, dtype=errors.dtype)
    compared = min(len(Y) for Y in own)
    P, Y = (torch.stack([each[:compared].flatten() for each in of]) for of in (outputs, own))
    # Not by ‖P‖² - 2 P Yᵀ + ‖Y‖², which cancels.
    distances = torch.cdist(P, Y, compute_mode="donot_use_mm_for_euclid_dist")
    itself = torch.eye(len(own), dtype=torch.bool, device=distances.device)
    nearest = distances.masked_fill(itself, float("inf")).amin(dim=1)
    repel = (settings.margin - nearest).clamp(min=0).square()
    return (shares * (errors + repel + MSE_WEIGHT * means)).sum()


METHOD = Method(LoraclrSettings, merge, honours=frozenset({Option.WEIGHTS}))
