"""SSR-Merge, subspace signal routing (Wei et al., ICML 2026, arXiv 2606.10617, section 3).

All concepts' halves are stacked, A = [A1; …; An] and B = [s1 B1 … sn Bn], and a router R of size
Σ ri x Σ ri sits between them: Δ = B R A. While concept k is drawn by its own model, the signals are
z = A x, and only those of its own rows, Hk, should reach its own columns of B:

    min_R  Σk wk ‖R Zk - [0; Hk; 0]‖²/mk  +  λ W ‖R‖²,    W = Σk wk

    R = Q (G + λ I)⁻¹,    G = Σk wk Zk Zkᵀ/mk / W,    Q = [w1 H1 Z1ᵀ/m1; …; wn Hn Znᵀ/mn] / W

A stays as it is, so all inputs that concepts were recorded on enter through (Σ ri)² numbers a
layer: with Gk = Xkᵀ Xk/mk, Zk Zkᵀ/mk is A Gk Aᵀ, and Hk Zkᵀ/mk its rows of concept k. A layer that
one concept alone changes keeps that change.

The paper merges the layers of a diffusion transformer, one prompt a concept, one denoising step,
all text positions, λ absolute. Here the text encoder is routed in the same way, first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
from mos_server.fusion.attachments import attached_changes
from mos_server.fusion.layerwise import changed_layers
from mos_server.fusion.methods.method import Method, Option, Solved
from mos_server.fusion.recording_settings import PAPER_PROMPTS, RecordingSettings
from mos_server.fusion.solve import refactored
from mos_server.fusion.statistics import Recording, Statistics


@dataclass(frozen=True)
class SsrMergeSettings:
    """The calibration and the ridge, as published."""

    method: ClassVar[str] = "ssr-merge"
    ridge: float = setting(1e-4, "λ, added to the mean second moment of every signal")
    contexts: tuple[str, ...] = setting(PAPER_PROMPTS[:1], "prompts that concepts are recorded under")
    steps: int = setting(1, "denoising steps of the sampling that is recorded")
    batch: int = setting(16, "prompts that are sampled together")

    def __post_init__(self) -> None:
        if not 0 < self.ridge <= 1e3:
            raise RequestError(f"ridge {self.ridge}: expected a number above 0, at most 1000")
        _ = self.recording

    @property
    def recording(self) -> RecordingSettings:
        """The calibration: all text positions, no guidance."""
        return RecordingSettings(contexts=self.contexts, rows="all", steps=self.steps, guidance=1.0, batch=self.batch)


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: SsrMergeSettings,
    statistics: Statistics,
) -> Solved:
    """Stack the changes, and route each concept's signals to its own part by least squares.

    Raises:
        UnusableConceptError: a concept's forward pass is not finite.

    """
    changes: dict[str, LowRank] = {}
    for group in Group:
        layers = changed_layers(base, concepts, group)
        if not layers:
            continue
        reads = frozenset(layer.reads for layer in layers)
        recordings = [
            Recording(
                group,
                named,
                attached_changes(base, group, named.concept, {}, text_inputs="own", unet_inputs="own"),
                reads,
                settings.recording,
            )
            for named in concepts
        ]
        statistics.gather(recordings)
        routers = {layer.name: Router([named.concept.pairs.get(layer.name) for named in concepts]) for layer in layers}
        for k, (named, recorded) in enumerate(zip(concepts, recordings, strict=True)):
            moments = statistics.of(recorded)
            for layer in layers:
                if layer.name in named.concept.pairs:
                    routers[layer.name].add(k, moments.mean(layer.reads), weights[named.token])
        changes |= {name: router.change(settings.ridge) for name, router in routers.items()}
        statistics.progress(f"{group}: {len(layers)} layers routed")
    return Solved(changes)


class Router:
    """G and Q of one layer, summed over concepts; `pairs` has None for one without a change."""

    def __init__(self, pairs: Sequence[LowRank | None]) -> None:
        present = [pair for pair in pairs if pair]
        self.A = torch.cat([pair.A.double() for pair in present])
        self.B = torch.cat([pair.scale * pair.B.double() for pair in present], dim=1)
        ends = list(accumulate(pair.rank if pair else 0 for pair in pairs))
        self.own = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        self.alone = len(present) == 1
        self.total = 0.0
        self.G = torch.zeros(len(self.A), len(self.A), dtype=torch.float64)
        self.Q = self.G.clone()

    def add(self, k: int, moment: Float[Tensor, "d_in d_in"], weight: float) -> None:
        """Add concept k's recorded inputs; `moment` is Gk."""
        signals = weight * self.A @ moment @ self.A.T
        self.G += signals
        self.Q[self.own[k]] += signals[self.own[k]]
        self.total += weight

    def change(self, ridge: float) -> LowRank:
        """Return B R A."""
        if self.alone:
            return refactored(self.B, self.A)
        damped = self.G / self.total + ridge * torch.eye(len(self.G), dtype=torch.float64)
        R = torch.linalg.solve(damped, self.Q / self.total, left=False)
        return refactored(self.B @ R, self.A)


METHOD = Method(SsrMergeSettings, merge, honours=frozenset({Option.WEIGHTS, Option.WORKERS, Option.MOMENTS}))
