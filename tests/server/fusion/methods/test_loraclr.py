"""LoRACLR: the published code's case, its loss by hand, and a concept alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mos_common.errors import RequestError
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.loraclr import MSE_WEIGHT, LoraclrSettings, contrastive_layer, contrastive_loss
from reference import rival_cases


@pytest.fixture
def case() -> dict:
    return rival_cases.case("loraclr")


def settings_of(case: dict, **changed: object) -> LoraclrSettings:
    published = LoraclrSettings(
        margin=case["margin"],
        norm_weight=case["lambda_reg"],
        learning_rate=case["lr"],
        iterations=case["iterations"],
    )
    return replace(published, **changed)


def learned(case: dict, settings: LoraclrSettings, weights=(1.0, 1.0, 1.0)) -> Tensor:
    return contrastive_layer(case["W0"], case["changes"], case["X"], settings, weights)


def loss_of(change: Tensor, case: dict, settings: LoraclrSettings) -> float:
    """The loss by loops and numbers, with its term of the change."""
    own = [X @ (case["W0"] + each).T for X, each in zip(case["X"], case["changes"], strict=True)]
    total = 0.0
    for i, X in enumerate(case["X"]):
        P = X @ (case["W0"] + change).T
        others = [float(((P - Y) ** 2).sum()) ** 0.5 for j, Y in enumerate(own) if j != i]
        total += float(((P - own[i]) ** 2).sum()) + max(0.0, settings.margin - min(others, default=1e9)) ** 2
        total += MSE_WEIGHT * float(((P - own[i]) ** 2).mean())
    return total / len(own) + settings.norm_weight * float((change**2).sum()) ** 0.5


def test_a_layer_is_learned_as_by_the_published_code(case):
    """Fifty steps of AdamW in float32, so that rounding adds up to some 1e-5 of a step of 1e-3."""
    change = learned(case, settings_of(case))
    torch.testing.assert_close(change, case["merged"], rtol=0, atol=2e-6)
    assert not torch.allclose(learned(case, settings_of(case, margin=0.0)), change, atol=1e-4)  # it repels


def test_the_loss_is_that_of_the_equation(case):
    settings, change = settings_of(case), 0.1 * case["changes"][0]
    own = [X @ (case["W0"] + each).T for X, each in zip(case["X"], case["changes"], strict=True)]
    outputs = [X @ (case["W0"] + change).T for X in case["X"]]
    shares = torch.full((3,), 1 / 3, dtype=torch.float64)
    loss = float(contrastive_loss(outputs, own, shares, settings)) + settings.norm_weight * float(change.norm())
    assert loss == pytest.approx(loss_of(change, case, settings), rel=1e-9)


def test_the_loss_falls_with_the_steps(case):
    reached = [loss_of(learned(case, settings_of(case, iterations=n)), case, settings_of(case)) for n in (2, 10, 50)]
    assert loss_of(torch.zeros_like(case["W0"]), case, settings_of(case)) > reached[0] > reached[1] > reached[2]


def test_outputs_keep_a_larger_distance_from_others_with_a_margin(case):
    def nearest(change: Tensor) -> Tensor:
        outputs = torch.stack([(X @ (case["W0"] + change).T).flatten() for X in case["X"]])
        pairs = zip(case["X"], case["changes"], strict=True)
        own = torch.stack([(X @ (case["W0"] + each).T).flatten() for X, each in pairs])
        return torch.cdist(outputs, own).masked_fill(torch.eye(3, dtype=torch.bool), float("inf")).amin(dim=1)

    with_margin, without = (learned(case, settings_of(case, margin=margin, iterations=300)) for margin in (1.5, 0.0))
    assert (nearest(with_margin) > nearest(without)).all()


def test_a_concept_alone_is_learned(case):
    """There is nobody to keep away from, and a row for every input leaves no other solution."""
    alone = {"W0": case["W0"], "changes": case["changes"][:1], "X": [torch.eye(6, dtype=torch.float64)]}
    settings = settings_of(case, iterations=2000, norm_weight=0.0)
    change = learned(alone, settings, [1.0])
    torch.testing.assert_close(change, case["changes"][0], rtol=0, atol=2e-3)


def test_weights_are_shares_of_the_loss(case):
    """A concept that counts a thousand times as much is nearly alone."""
    settings = settings_of(case, iterations=1000, margin=0.0)
    alone = {"W0": case["W0"], "changes": case["changes"][:1], "X": case["X"][:1]}
    expected = case["X"][0] @ learned(alone, settings, [1.0]).T
    reached = [case["X"][0] @ learned(case, settings, (weight, 1.0, 1.0)).T for weight in (1.0, 1000.0)]
    far, near = (float((each - expected).norm()) for each in reached)
    assert near < 0.2 * far


def test_words_of_different_lengths_are_compared_by_the_rows_that_both_have(case):
    """A row more than the others' takes no part in repelling, and its error counts."""
    longer = [torch.cat([case["X"][0], case["X"][0][:1]]), *case["X"][1:]]
    own = [X @ (case["W0"] + each).T for X, each in zip(longer, case["changes"], strict=True)]
    outputs = [X @ case["W0"].T for X in longer]
    shares, settings = torch.full((3,), 1 / 3, dtype=torch.float64), settings_of(case)
    both = [
        float(contrastive_loss(of, to, shares, settings))
        for of, to in ((outputs, own), ([outputs[0][:4], *outputs[1:]], [own[0][:4], *own[1:]]))
    ]
    outputs, own = outputs[0].double(), own[0].double()
    errors = (outputs - own).square()
    extra = float(errors[4].sum() + MSE_WEIGHT * (errors.mean() - errors[:4].mean())) / 3
    assert both[0] == pytest.approx(both[1] + extra, rel=1e-9)


def test_the_published_margin_is_below_all_distances_of_recorded_outputs(tiny, two):
    """Distances are over all rows of a concept: without a margin, the model is the same."""
    brief = LoraclrSettings(iterations=3, steps=1)
    with_margin, without = (fuse(tiny, two, each).changes for each in (brief, replace(brief, margin=0.0)))
    for name, pair in with_margin.items():
        assert torch.equal(pair.A, without[name].A) and torch.equal(pair.B, without[name].B)


def test_a_fusion_changes_every_layer_that_concepts_change(tiny, two):
    lines = list[str]()
    changes = fuse(tiny, two, LoraclrSettings(iterations=2, steps=1), progress=lines.append).changes
    assert changes.keys() == {layer.name for layer in tiny.layout.attention}
    assert "LoRACLR stores the rows" in lines[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"margin": -1.0},
        {"norm_weight": -1.0},
        {"learning_rate": 0.0},
        {"iterations": 0},
        {"steps": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RequestError):
        LoraclrSettings(**wrong)
