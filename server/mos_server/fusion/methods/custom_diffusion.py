"""Custom Diffusion's constrained merge of keys and values.

(Kumari et al., CVPR 2023, arXiv 2212.04488, section 3.3)

    min ‖Δ X0ᵀ‖  subject to  Δ Xiᵀ = ΔWi Xiᵀ for every concept i

X0 are features of ordinary prompts, Xi those of concept i's words, all as the untouched text
encoder gives them, since nothing else is merged. With X0ᵀX0 = R = L Lᵀ, X all Xi, T all targets and
Z = X L⁻ᵀ the solution is Δ = Tᵀ (Z⁺)ᵀ L⁻¹: the paper's closed form, Tᵀ (X R⁻¹ Xᵀ)⁻¹ X R⁻¹, which
also holds for dependent constraints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mos_common.base_model import Base
from mos_common.concept import words_of
from mos_common.errors import RequestError
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_common.prompts import ORDINARY, about
from mos_common.settings import setting
from mos_common.words import encode_token_ids, tokenise
from mos_server.fusion.activations import position_weights
from mos_server.fusion.methods.method import Method, Solved
from mos_server.fusion.recording_settings import PAPER_PROMPTS, ROWS
from mos_server.fusion.solve import refactored
from mos_server.fusion.statistics import Statistics

# As a share of the mean second moment of ordinary text: some hundred rows do not span the width of
# a text encoder.
DAMPING = 1e-4


@dataclass(frozen=True)
class CustomDiffusionSettings:
    """The prompts that the merge must change least."""

    method: ClassVar[str] = "custom-diffusion"
    ordinary: tuple[str, ...] = setting(ORDINARY, "prompts whose features are changed as little as possible")

    def __post_init__(self) -> None:
        if not self.ordinary:
            raise RequestError("ordinary needs at least one prompt")


def merge(
    base: Base,
    concepts: Sequence[NamedConcept],
    weights: Mapping[str, float],
    settings: CustomDiffusionSettings,
    statistics: Statistics,
) -> Solved:
    """Keep every concept's words exactly, in keys and values alone, and change ordinary text least.

    Every concept is a constraint that is met exactly, so that weights would change nothing.
    """
    layers = base.layout.by_group[Group.CROSS]
    order = {f"unet.{cross.name}": cross.word_layer for cross in base.layout.cross_attentions}
    own = [word_features(base, named) for named in concepts]
    usual = ordinary_features(base, settings.ordinary)
    changes = {}
    for layer in layers:
        k = order[layer.name.rpartition(".")[0]]
        pairs = [named.concept.pairs.get(layer.name) for named in concepts]
        X = torch.cat([features[k] for features in own])
        targets = [
            features[k] @ pair.change(torch.float64).T if pair else torch.zeros(len(features[k]), layer.d_out).double()
            for features, pair in zip(own, pairs, strict=True)
        ]
        R = usual[k].T @ usual[k]
        R += DAMPING * R.diagonal().mean() * torch.eye(len(R), dtype=R.dtype)
        L = torch.linalg.cholesky(R)
        Z = torch.linalg.solve_triangular(L.T, X, upper=True, left=False)
        if any(pairs):
            right = torch.linalg.solve_triangular(L, torch.linalg.pinv(Z).T, upper=False, left=False)
            changes[layer.name] = refactored(torch.cat(targets).T, right)
    return Solved(changes)


def word_features(base: Base, named: NamedConcept) -> list[Float[Tensor, "rows width"]]:
    """Return the features of a concept's words and first end-of-text token, by cross-attention."""
    prompts = [about(prompt, named.concept.name) for prompt in PAPER_PROMPTS]
    return _features(base, prompts, {named.concept.name: words_of(named.concept, base)}, "words")


def ordinary_features(base: Base, prompts: Sequence[str]) -> list[Float[Tensor, "rows width"]]:
    """Return the features of whole ordinary prompts, by cross-attention."""
    return _features(base, prompts, {}, "text")


def _features(
    base: Base, prompts: Sequence[str], vocabulary: Mapping[str, Tensor], rows: str
) -> list[Float[Tensor, "rows width"]]:
    texts = [tokenise(base, prompt, vocabulary) for prompt in prompts]
    chosen = position_weights(texts, ROWS[rows]) > 0
    with torch.no_grad():
        features = encode_token_ids(base, texts, vocabulary).double().cpu()
    return [features[:, k][chosen] for k in range(features.shape[1])]


METHOD = Method(CustomDiffusionSettings, merge, honours=frozenset())
