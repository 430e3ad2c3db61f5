"""Custom Diffusion's merge, against the Lagrange system of its constrained problem."""

from __future__ import annotations

import torch

from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_common.layers import Group
from mos_common.words import encode_prompts
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.custom_diffusion import (
    DAMPING,
    CustomDiffusionSettings,
    ordinary_features,
    word_features,
)
from mos_server.fusion.methods.sum import SumSettings

ORDINARY = ("", "a tree", "a dog in a meadow")


def custom_diffusion(tiny, concepts) -> dict[str, LowRank]:
    return fuse(tiny, concepts, CustomDiffusionSettings(ordinary=ORDINARY)).changes


def words_of(tiny, named: NamedConcept) -> torch.Tensor:
    """Features of "V" by cross-attention layer, as the untouched text encoder gives them.

    Those of the words and the first end-of-text token.
    """
    concept = named.concept
    with torch.no_grad():
        features = encode_prompts(tiny, [concept.name], {concept.name: concept.words[0]})[0].double()
    return features[:, 1 : 1 + concept.words[0].shape[1] + 1]


def test_custom_diffusion_keeps_its_constraints(tiny, two):
    """On each concept's words the merged keys and values are that concept's own.

    No other layer is touched.
    """
    fused = custom_diffusion(tiny, two)
    assert {layer.group for layer in tiny.layout.attention if layer.name in fused} == {Group.CROSS}
    for named in two:
        words = words_of(tiny, named)
        for k, name in enumerate(cross.name for cross in tiny.layout.cross_attentions):
            for part in ("to_k", "to_v"):
                layer = f"unet.{name}.{part}"
                own = words[k] @ named.concept.pairs[layer].change(torch.float64).T
                merged = words[k] @ fused[layer].change(torch.float64).T
                assert float((merged - own).norm() / own.norm()) < 1e-6


def test_custom_diffusion_is_the_least_change_of_ordinary_text_that_keeps_them(tiny, two):
    """Against the Lagrange system of the constrained problem, [[R, Cᵀ], [C, 0]], solved densely."""
    fused = custom_diffusion(tiny, two)
    C = [torch.cat(rows) for rows in zip(*(word_features(tiny, named) for named in two), strict=True)]
    ordinary = ordinary_features(tiny, ORDINARY)
    sizes = [len(word_features(tiny, named)[0]) for named in two]
    for k, name in enumerate(cross.name for cross in tiny.layout.cross_attentions):
        layer = f"unet.{name}.to_v"
        R = ordinary[k].T @ ordinary[k]
        R += DAMPING * R.diagonal().mean() * torch.eye(len(R))
        own = [named.concept.pairs[layer].change(torch.float64) for named in two]
        V = torch.cat([rows @ change.T for rows, change in zip(C[k].split(sizes), own, strict=True)])
        system = torch.cat([torch.cat([R, C[k].T], dim=1), torch.cat([C[k], torch.zeros(len(C[k]), len(C[k]))], dim=1)])
        known = torch.cat([torch.zeros(len(R), V.shape[1], dtype=torch.float64), V])
        expected = torch.linalg.solve(system, known)[: len(R)].T
        merged = fused[layer].change(torch.float64)
        assert float((merged - expected).norm() / expected.norm()) < 1e-5


def test_custom_diffusion_keeps_constraints_that_are_there_twice(tiny, two):
    """Two participants bring one concept.

    Every constraint depends on another one, and all of them can be kept.
    """
    twice = [two[0], NamedConcept("carol", two[0].concept)]
    fused, words = custom_diffusion(tiny, twice), words_of(tiny, two[0])
    for k, name in enumerate(cross.name for cross in tiny.layout.cross_attentions):
        own = words[k] @ two[0].concept.pairs[f"unet.{name}.to_v"].change(torch.float64).T
        merged = words[k] @ fused[f"unet.{name}.to_v"].change(torch.float64).T
        assert float((merged - own).norm() / own.norm()) < 1e-6


def test_custom_diffusion_moves_ordinary_prompts_less_than_the_sum_does(tiny, two):
    fused, by_sum = custom_diffusion(tiny, two), fuse(tiny, two, SumSettings(sum_weight=1.0)).changes
    with torch.no_grad():
        features = encode_prompts(tiny, ["a tree"], {})[0].double()

    def moved(changes: dict[str, LowRank]) -> float:
        return sum(
            float((features[k] @ changes[f"unet.{name}.to_v"].change(torch.float64).T).square().sum())
            for k, name in enumerate(cross.name for cross in tiny.layout.cross_attentions)
        )

    assert moved(fused) < 0.5 * moved(by_sum)
