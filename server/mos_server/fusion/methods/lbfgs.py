"""The paper's own solver, as published: L-BFGS on stored activations, stopped early.

History 25, strong Wolfe line search, float32, from W0 on, 500 steps for the text encoder and for
keys and values, 50 for the rest of the UNet; concept words and the first end-of-text token count in
text; the UNet is sampled on fused text encoder and fused keys and values, with the concept's own
remaining changes, without guidance. (Paper section 3.3 and 4.1, settings as far as they are
published.)

It is here for comparison. It needs memory for every row that any layer reads, of all concepts at
once, and reports the amount before it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

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


@dataclass(frozen=True)
class LbfgsSettings:
    """When the solver stops, and how stored rows are sampled; all else is as published."""

    method: ClassVar[str] = "lbfgs"
    text_iterations: int = setting(500, "L-BFGS steps for the text encoder, and for keys and values")
    unet_iterations: int = setting(50, "L-BFGS steps for the rest of the UNet")
    steps: int = setting(20, "denoising steps of the sampling that is stored")
    batch: int = setting(16, "prompts that are sampled together")

    def __post_init__(self) -> None:
        if self.text_iterations < 1 or self.unet_iterations < 1:
            raise RequestError("text_iterations and unet_iterations: expected at least 1")
        _ = self.recording

    @property
    def recording(self) -> RecordingSettings:
        """The paper's recording."""
        return RecordingSettings(contexts=PAPER_PROMPTS, rows="words", steps=self.steps, guidance=1.0, batch=self.batch)

    def iterations(self, group: Group) -> int:
        """Return the L-BFGS steps for the layers of one group."""
        return self.unet_iterations if group is Group.SPATIAL else self.text_iterations


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: LbfgsSettings,
    statistics: Statistics,
) -> Solved:
    """Run the paper's own solver as published, L-BFGS on stored activations, for comparison.

    Raises:
        FusionError: the stored rows would not fit into memory.
        UnusableConceptError: a concept's forward pass is not finite.

    """
    check_memory(base, concepts, settings.steps, "L-BFGS", statistics.progress)
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
            change = lbfgs_layer(W0, changes, X, settings.iterations(group), [weights[it.token] for it in concepts])
            solved[layer.name] = refactored(change.double().cpu(), torch.eye(layer.d_in, dtype=torch.float64))
            statistics.progress(f"{group}: {i}/{len(layers)} layers optimised")
    return Solved(solved)


def lbfgs_layer(
    W0: Float[Tensor, "d_out d_in"],
    changes: Sequence[Float[Tensor, "d_out d_in"]],
    rows: Sequence[Float[Tensor, "rows d_in"]],
    steps: int,
    weights: Sequence[float] | None = None,
) -> Float[Tensor, "d_out d_in"]:
    """Return the best W - W0 that L-BFGS reaches in `steps` steps.

    It minimises Σi wi ‖Xi (W - W0 - ΔWi)ᵀ‖²/mi; without `weights` every wi is 1, as in the paper.
    It starts at W0 and computes in W0's dtype. The objective is scaled by its value at W0, because
    torch's L-BFGS has absolute bounds (it stops if the loss falls by less than 1e-9, and ignores
    curvature below 1e-10). Unscaled, changes as small as those of a low learning rate would end
    after a few of the 500 steps, and this method would look worse than it is.
    """
    weights = weights or [1.0] * len(rows)
    at_base = sum(
        weight * float((X @ change.T).square().sum()) / len(X)
        for weight, X, change in zip(weights, rows, changes, strict=True)
    )
    if at_base == 0:
        return torch.zeros_like(W0)
    roots = [weight**0.5 * (at_base * len(part)) ** -0.5 for weight, part in zip(weights, rows, strict=True)]
    X = torch.cat([root * part for root, part in zip(roots, rows, strict=True)])
    Y = torch.cat([root * part @ (W0 + change).T for root, part, change in zip(roots, rows, changes, strict=True)])
    W = W0.clone()
    least, best = float("inf"), W0
    optimizer: Any = torch.optim.LBFGS([W], max_iter=steps, history_size=25, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        nonlocal least, best
        left_over = W @ X.T - Y.T
        W.grad = 2 * left_over @ X
        loss = left_over.square().sum()
        if float(loss) < least:
            least, best = float(loss), W.clone()
        return loss

    with torch.no_grad():
        optimizer.step(closure)
    return best - W0


METHOD = Method(LbfgsSettings, merge, honours=frozenset({Option.WEIGHTS}))
