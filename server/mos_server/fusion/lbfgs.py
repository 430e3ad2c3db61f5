"""The paper's own solver, as published: activations are stored, and every layer is optimised by L-BFGS that is stopped early.

History 25, strong Wolfe line search, float32, from W0 on, 500 steps for the text encoder and for keys and values, 50 for the rest of
the UNet; new words and the first end count in text; the UNet is sampled on fused text encoder and fused keys and values, with
the concept's own remaining changes, without guidance. (Paper section 3.3 and 4.1, settings as far as they are published.)

Here to be compared with. It needs memory for every row that any layer reads, of all concepts at once, and says so before it starts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.attention import conditioned
from mos_common.base_model import Base
from mos_common.conditioning import read_prompts
from mos_common.drawing import Drawing, scheduler_for
from mos_common.edlora import LowRank
from mos_common.errors import FusionError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group, Layer, adaptable_layers
from mos_server.fusion.moments import Moments, recording
from mos_server.fusion.rivals import PAPER_PROMPTS
from mos_server.fusion.settings import FusionSettings
from mos_server.fusion.solve import refactored
from mos_server.fusion.statistics import Recording

STEPS = {Group.TEXT: 500, Group.CROSS: 500, Group.SPATIAL: 50}
Progress = Callable[[str], None]


@dataclass
class StoredRows(Moments):
    """Not their moments: the rows themselves, float32 in host memory."""

    stored: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reads: str, rows: Float[Tensor, "rows d_in"], count: float | None = None) -> None:
        """Keep a copy of rows: what is given may be a part of something larger, or be written to later."""
        self.stored[reads].append(rows.to("cpu", torch.float32, copy=True))

    def merge(self, other: Moments) -> None:
        """Keep another's rows too."""
        for reads, rows in getattr(other, "stored", {}).items():
            self.stored[reads] += rows

    def finished(self) -> StoredRows:
        """The same, when every row is finite."""
        for reads, rows in self.stored.items():
            if not all(bool(torch.isfinite(part).all()) for part in rows):
                raise FusionError(f"the activations of {reads} are not finite")
        return self


def lbfgs_fusion(
    base: Base,
    concepts: Sequence[NamedConcept],
    settings: FusionSettings,
    progress: Progress,
    steps: Mapping[Group, int] = STEPS,
) -> dict[str, LowRank]:
    """The changes that the paper's procedure ends with.

    Raises:
        FusionError: the stored rows would not fit into memory.

    """
    paper = replace(settings, rows="words", contexts=PAPER_PROMPTS, guidance=1.0, unconditional=False)
    needed, free = memory_needed(base, concepts, paper), psutil.virtual_memory().available
    progress(f"L-BFGS stores the rows of all concepts: {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
    if needed > free:
        raise FusionError(
            f"L-BFGS as published needs {needed / 2**30:.1f} GiB for the rows of {len(concepts)} concepts, {free / 2**30:.1f} GiB are "
            "free: --method gradient needs none of it"
        )
    of_group = {layer.name: layer.group for layer in adaptable_layers(base)}
    solved: dict[str, LowRank] = {}
    for group in Group:
        layers = _changed_layers(base, concepts, group)
        reads, fused = frozenset(layer.reads for layer in layers), dict(solved)
        if not layers:
            continue
        rows = []
        for named in concepts:
            own = {name: pair for name, pair in named.concept.pairs.items() if of_group[name] is group}
            put_on = own if group is Group.TEXT else fused if group is Group.CROSS else fused | own
            alone = replace(paper, contexts=PAPER_PROMPTS[:1]) if group is Group.SPATIAL else paper
            rows.append(Recording(group, named, put_on, reads, alone).record(base, StoredRows))
        for i, layer in enumerate(layers, 1):
            pairs = [named.concept.pairs.get(layer.name) for named in concepts]
            stored = [torch.cat(kept.stored[layer.reads]).to(base.device) for kept in rows]  # type: ignore[attr-defined]
            W0 = layer.module.weight.detach().flatten(1).float()
            change = lbfgs_layer(W0, _dense(pairs, layer), stored, steps[group])
            solved[layer.name] = refactored(change.double().cpu(), torch.eye(layer.d_in, dtype=torch.float64))
            progress(f"{group}: {i}/{len(layers)} layers optimised")
    return solved


def lbfgs_layer(
    W0: Float[Tensor, "d_out d_in"],
    changes: Sequence[Float[Tensor, "d_out d_in"]],
    rows: Sequence[Float[Tensor, "rows d_in"]],
    steps: int,
) -> Float[Tensor, "d_out d_in"]:
    """The best W - W0 that `steps` steps of L-BFGS meet on Σi ‖Xi (W - W0 - ΔWi)ᵀ‖²/mi, started at W0, in the dtype of W0.

    The objective is counted in units of its value at W0. torch's L-BFGS has absolute bounds (it stops where it falls by less than
    1e-9, and leaves out curvature below 1e-10): without that, changes as small as those of a low learning rate would end after a
    few of the 500 steps, and the rival would look worse than it is.
    """
    at_base = sum(float((X @ change.T).square().sum()) / len(X) for X, change in zip(rows, changes, strict=True))
    if at_base == 0:
        return torch.zeros_like(W0)
    weights = [(at_base * len(part)) ** -0.5 for part in rows]
    X = torch.cat([weight * part for weight, part in zip(weights, rows, strict=True)])
    Y = torch.cat(
        [weight * part @ (W0 + change).T for weight, part, change in zip(weights, rows, changes, strict=True)]
    )
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


def memory_needed(base: Base, concepts: Sequence[NamedConcept], settings: FusionSettings) -> int:
    """Bytes of the UNet's rows for all concepts, counted in one step of it; text needs far less, and is gone by then."""
    layers = _changed_layers(base, concepts, Group.SPATIAL)
    counted, how = StoredRows(), Drawing(steps=settings.steps)
    scheduler = scheduler_for(base, how)
    height, width = (side // base.pixels_per_latent for side in how.sized_for(base))
    latents = torch.zeros(1, base.unet.config.in_channels, height, width, device=base.device, dtype=base.dtype)  # type: ignore[union-attr, arg-type]
    with torch.no_grad(), conditioned(base, read_prompts(base, [""], {})) as unet, recording(layers, counted):
        unet.predict(latents, torch.tensor(0, device=base.device))
    a_step = sum(part.numel() * part.element_size() for kept in counted.stored.values() for part in kept)
    scheduler.set_timesteps(settings.steps)  # some add a step of their own
    return a_step * len(scheduler.timesteps) * len(concepts)


def _changed_layers(base: Base, concepts: Sequence[NamedConcept], group: Group) -> list[Layer]:
    changed = {name for named in concepts for name in named.concept.pairs}
    return [layer for layer in adaptable_layers(base) if layer.group is group and layer.name in changed]


def _dense(pairs: Sequence[LowRank | None], layer: Layer) -> list[Tensor]:
    weight = layer.module.weight
    nothing = torch.zeros(layer.d_out, layer.d_in)
    return [(pair.change() if pair else nothing).to(weight.device) for pair in pairs]
