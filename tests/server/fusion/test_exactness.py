"""How exact "exactly" is: the published change against a dense float64 optimum on the same rows.

The measure is the objective, since fusion minimises that: the excess of the published change over
the optimum, as a share of the objective of changing nothing.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from mos_common.edlora import LowRank
from mos_common.fused_model import NamedConcept
from mos_server.fusion.fuse import fuse
from mos_server.fusion.gram import sliced_gram
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.moments import Moments
from mos_server.fusion.solve import solve_change, stacked_left
from mos_server.fusion.statistics import Recording

MOST_EXCESS = 1e-6
SETTINGS = GradientSettings(
    contexts=("V", "photo of a V"), ordinary=("", "a tree"), steps=2, guidance=3.0, batch=2, cap=1e30, sharpen=1.0
)


@pytest.fixture
def stored(monkeypatch) -> dict[str, dict[str, torch.Tensor]]:
    """Every row that is recorded, by whose it is and what reads it, as float64."""
    kept: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    whose = [""]
    add, record = Moments.add, Recording.record

    def storing(self, reads, rows, count=None):
        kept[whose[0]][reads].append(rows.double())
        add(self, reads, rows, count)

    def recorded(self, base, sink):
        whose[0] = self.token
        return record(self, base, sink)

    monkeypatch.setattr(Moments, "add", storing)
    monkeypatch.setattr(Recording, "record", recorded)
    return kept


class Dense:
    """The regularised objective of one layer over stored rows."""

    def __init__(self, rows, changes, ordinary, preserve: float, ridge: float, towards: float) -> None:
        self.blocks = [X / len(X) ** 0.5 for X in rows]
        self.targets = [block @ change.T for block, change in zip(self.blocks, changes, strict=True)]
        if preserve:
            self.blocks.append((preserve / len(ordinary)) ** 0.5 * ordinary)
            self.targets.append(torch.zeros(len(ordinary), changes[0].shape[0], dtype=torch.float64))
        width = changes[0].shape[1]
        damping = ridge * sum(float(block.square().sum()) for block in self.blocks) / width
        self.blocks.append(damping**0.5 * torch.eye(width, dtype=torch.float64))
        self.targets.append(damping**0.5 * towards * sum(changes).T)

    def optimum(self) -> torch.Tensor:
        return torch.linalg.lstsq(torch.cat(self.blocks), torch.cat(self.targets), driver="gelsd").solution.T

    def __call__(self, change: torch.Tensor) -> float:
        return sum(
            float((block @ change.T - target).square().sum())
            for block, target in zip(self.blocks, self.targets, strict=True)
        )

    def excess(self, change: torch.Tensor) -> float:
        """By how much `change` misses the optimum, as a share of what changing nothing costs."""
        return (self(change) - self(self.optimum())) / self(torch.zeros_like(change))


@pytest.mark.parametrize(
    ("ridge", "rows", "preserve", "towards", "sharpen"),
    [
        (0.1, "all", 0.3, 0.0, 1.0),
        (0.1, "all", 0.3, 0.4, 1.0),
        (1e-4, "all", 0.0, 0.0, 1.0),
        (1e-9, "all", 0.3, 0.0, 1.0),
        (1e-9, "words", 0.0, 0.0, 1.0),
        (0.1, "all", 0.3, 0.4, 3.0),
        (1e-4, "words", 0.3, 0.0, 2.0),
    ],
    ids=[
        "towards no change",
        "towards the sum",
        "small ridge",
        "tiny ridge",
        "tiny ridge, few rows",
        "sharpened",
        "sharpened, few rows",
    ],
)
def test_every_published_layer_is_at_the_optimum(base, make_concept, stored, ridge, rows, preserve, towards, sharpen):
    """Three groups of layers on real activations; with "words" S alone is singular.

    Sharpened, the targets are written out: each concept's change, moved away from their mean.
    """
    concepts = [
        NamedConcept(participant, make_concept(base, name, seed=seed, rank=seed + 1))
        for seed, (participant, name) in enumerate((("alice", "<cat>"), ("bob", "<dog>"), ("carol", "<tree>")))
    ]
    settings = replace(SETTINGS, ridge=ridge, rows=rows, preserve=preserve, towards=towards, sharpen=sharpen)
    fused = fuse(base, concepts, settings)
    survivals = {concept.token: concept.survival for concept in fused.manifest.concepts}
    for layer in base.layout.attention:
        X = [torch.cat(stored[named.token][layer.reads]) for named in concepts]
        changes = [named.concept.pairs[layer.name].change(torch.float64) for named in concepts]
        ordinary = torch.cat(stored["ordinary prompts"][layer.reads])
        mean = sum(changes) / len(changes)
        wanted = [mean + sharpen * (change - mean) for change in changes]
        dense = Dense(X, wanted, ordinary, len(concepts) * preserve, ridge, towards)
        change = fused.changes[layer.name].change(torch.float64)
        assert dense.excess(change) < MOST_EXCESS, layer.name
        for named, own_rows, own in zip(concepts, X, changes, strict=True):
            measured = float((own_rows @ (change - own).T).square().sum()) / len(own_rows)
            whole = float((own_rows @ own.T).square().sum()) / len(own_rows)
            from_moments = survivals[named.token][layer.group.name.lower()].residual[layer.name]
            assert from_moments == pytest.approx(measured, rel=1e-5, abs=1e-9 * whole)


@pytest.mark.parametrize("concepts", [1, 2, 5])
@pytest.mark.parametrize(("width", "rows"), [(320, 2000), (768, 300)], ids=["spatial", "text"])
def test_shapes_of_stable_diffusion_are_solved_to_the_same_share(width, rows, concepts):
    """Synthetic rows of a realistic spectrum, λ = 1e-9, with float64 and with sliced Grams."""
    generator = torch.Generator().manual_seed(width + concepts)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mixing = normal(width, width) / width**0.5 * torch.logspace(0, -3, width)
    X = [normal(rows, width) @ mixing.T + 0.3 * normal(width) for _ in range(concepts)]
    pairs = [LowRank(normal(4, width) / width**0.5, 0.05 * normal(width // 2, 4), 4.0) for _ in range(concepts)]
    dense = Dense([x.double() for x in X], [pair.change(torch.float64) for pair in pairs], None, 0.0, 1e-9, 0.0)
    for gram in (lambda x: x.double().T @ x.double(), sliced_gram):
        G = [gram(x) / rows for x in X]
        right = torch.cat([pair.A.double() @ g for pair, g in zip(pairs, G, strict=True)])
        change = solve_change(sum(G), stacked_left(pairs), right, ridge=1e-9)
        assert dense.excess(change.change(torch.float64)) < MOST_EXCESS
