"""Settings of a small fusion by the plain equation, and comparisons of fused models."""

from __future__ import annotations

import torch

from mos_server.fusion.methods.gradient import GradientSettings

SETTINGS = GradientSettings(
    ridge=1e-2,
    ridge_kind="trace",
    towards=0.0,
    preserve=0.2,
    sharpen=1.0,
    rows="all",
    text_inputs="fused",
    contexts=("V", "photo of a V"),
    ordinary=("", "a tree"),
    steps=2,
    guidance=3.0,
    batch=2,
    cap=1e30,  # none: the equation alone
    least_share=None,
)


def contents(fused) -> dict[str, torch.Tensor]:
    """Everything in a fused model, to compare to the bit."""
    halves = {f"{name}.{half}": getattr(pair, half) for name, pair in fused.changes.items() for half in "AB"}
    return halves | dict(fused.vocabulary)


def assert_bit_equal(one, other) -> None:
    """Assert that two fused models hold the same tensors."""
    ours, theirs = contents(one), contents(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def relative(change: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ‖change - expected‖ / ‖expected‖."""
    return float((change - expected).norm() / expected.norm())


def energy_kept(fused, token: str) -> float:
    """Return the least energy kept of a concept over the groups of layers."""
    fused_concept = next(concept for concept in fused.manifest.concepts if concept.token == token)
    return min(survival.energy_kept for survival in fused_concept.survival.values())
