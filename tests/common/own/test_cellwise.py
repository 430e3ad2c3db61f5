"""One layer with other weights in other cells, against plain matrix products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mos_common.attention import conditioned
from mos_common.conditioning import read_prompts
from mos_common.drawing import Drawing, draw, initial_noise
from mos_common.edlora import LowRank
from mos_common.layers import Group
from mos_common.own.attach import attached_with_own
from mos_common.own.cellwise import (
    LEAST_RANK,
    CellShares,
    CellwiseLayer,
    Columns,
    mapped_layers,
    split_cells,
    stacked,
)
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_common.written_prompts import Phase

SHARES = {
    "some cells own": [[1, 0, 0, 0.0], [0, 0, 1, 0]],
    "all cells own": [[1, 0, 1, 0.0], [0, 1, 0, 1]],
    "soft edges": [[1, 0.25, 0, 0.0], [0, 0.5, 0.5, 0]],
}


@pytest.fixture
def pairs() -> list[LowRank]:
    return [LowRank(torch.randn(2, 6), torch.randn(5, 2), 2.0), LowRank(torch.randn(3, 6), torch.randn(5, 3), 1.5)]


def standing(module: nn.Module, pairs: list[LowRank], change: torch.Tensor, shares: torch.Tensor) -> CellwiseLayer:
    """Return a stand-in for `module`: its weight is the base's, then it gets the fused change."""
    weight = module.weight.detach().clone()
    with torch.no_grad():
        module.weight += change.view_as(module.weight)
    layer = type("Layer", (), {"name": "a", "module": module, "d_in": 6, "d_out": 5})
    own = [{"a": each} for each in pairs]
    cells = CellShares(lambda _cells: shares, Columns.of(own))
    return CellwiseLayer(module, weight, stacked(layer, own, cells.columns), cells)


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES.keys())
@pytest.mark.parametrize("kind", ["linear", "1x1 convolution"])
def test_each_cell_is_answered_by_the_weights_that_hold_there(pairs, shares, kind):
    """y = (1 - s)(W + Δ)x + sWx + Σ si Bi Ai x, cell by cell, with dense matrices in float64."""
    module = nn.Linear(6, 5) if kind == "linear" else nn.Conv2d(6, 5, 1)
    change, share = torch.randn(5, 6), torch.tensor([shares, shares[::-1]])
    W, bias = module.weight.detach().clone().view(5, 6).double(), module.bias.detach().double()
    layer, x = standing(module, pairs, change, share), torch.randn(2, 4, 6)
    with torch.no_grad():
        if kind == "linear":
            answered = layer(x)
        else:
            answered = layer(x.transpose(1, 2).reshape(2, 6, 2, 2)).flatten(2).transpose(1, 2)
    for row in range(2):
        for cell in range(4):
            held = share[row, :, cell].double()
            weight = W + (1 - held.sum()) * change.double()
            for pair, part in zip(pairs, held, strict=True):
                weight = weight + part * pair.change(torch.float64)
            torch.testing.assert_close(
                answered[row, cell].double(), weight @ x[row, cell].double() + bias, rtol=1e-5, atol=1e-5
            )


def test_where_nobody_has_a_share_the_layer_answers_as_it_is(pairs):
    module, x = nn.Linear(6, 5), torch.randn(2, 4, 6)
    layer = standing(module, pairs, torch.randn(5, 6), torch.zeros(2, 2, 4))
    assert torch.equal(layer(x), module(x))


def test_a_cell_is_computed_once_unless_it_lies_on_a_soft_edge():
    columns = Columns((range(1), range(1, 2)), LEAST_RANK)
    split = split_cells(torch.tensor([SHARES["some cells own"]]), columns)
    assert split.own.tolist() == [0, 2]
    assert split.fused.tolist() == [1, 3]
    assert not split.soft
    edges = split_cells(torch.tensor([SHARES["soft edges"]]), columns)
    assert edges.own.tolist() == [0, 1, 2]
    assert edges.fused.tolist() == [1, 2, 3]
    assert split_cells(torch.zeros(1, 2, 4), columns) is None
    thirds = split_cells(torch.full((1, 3, 4), 1 / 3), Columns((range(1),) * 3, LEAST_RANK))
    assert thirds.own is None
    assert len(thirds.fused) == 0


def test_shapes_do_not_depend_on_who_is_named(tiny, make_concept):
    """Up to four concepts of rank 4 fill one rank; more of them double it."""
    layer = tiny.layout.by_group[Group.SPATIAL][0]
    shapes = set()
    for count, rank in ((1, 4), (2, 2), (3, 4), (4, 4)):
        own = [make_concept(tiny, seed=seed, rank=rank).pairs for seed in range(count)]
        pair = stacked(layer, own, Columns.of(own))
        shapes.add((pair.A.shape, pair.B.shape))
    assert shapes == {((LEAST_RANK, layer.d_in), (layer.d_out, LEAST_RANK))}
    assert Columns.of([make_concept(tiny, rank=4).pairs] * 5).rank == 2 * LEAST_RANK


def test_what_differs_by_cell_reads_a_feature_map(base):
    """Time embeddings read one row for a whole picture."""
    mapped = mapped_layers(base)
    spatial = {layer.name for layer in base.layout.by_group[Group.SPATIAL]}
    assert set(spatial - mapped.keys()) == {name for name in spatial if "time_emb" in name}
    assert {layer.name for layer in base.layout.attention if layer.group is Group.SPATIAL} <= mapped.keys()


def test_a_region_s_cells_are_answered_as_by_its_concept_s_own_model(sixteen, make_concept):
    """Each spatial layer of the UNet, in a real pass, against W + ΔW of what holds there."""
    cat, dog = (make_concept(sixteen, name, seed=seed) for seed, name in enumerate(("<cat>", "<dog>")))
    fused = make_concept(sixteen, seed=7, strength=0.2).pairs
    vocabulary = {each.name: each.words[0] for each in (cat, dog)}
    regions = [Region("a <cat>", Box(0, 0, 0.5, 0.5)), Region("a <dog>", Box(0.5, 0, 1, 1))]
    side = 16 // sixteen.pixels_per_latent
    conditioning = read_prompts(sixteen, ["a b"], vocabulary, guidance=3, regions=regions, size=(side, side))
    noise = initial_noise(sixteen, [0], 16, 16)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with (
        attached_with_own(sixteen, fused, {"<cat>": cat.pairs, "<dog>": dog.pairs}) as own,
        own.placed(["a b"], regions, vocabulary, [Phase(0, conditioning)], 1),
        torch.no_grad(),
        conditioned(sixteen, conditioning) as unet,
    ):
        for name, module in sixteen.unet.named_modules():
            if isinstance(module, CellwiseLayer):
                module.register_forward_hook(
                    lambda _m, given, out, name=f"unet.{name}": seen.update({name: (given[0], out)})
                )
        unet.predict(torch.cat([noise, noise]), torch.tensor(500))
    attention = [layer for layer in sixteen.layout.attention if layer.group is Group.SPATIAL]
    assert seen.keys() == {layer.name for layer in attention}
    for layer in attention:
        read, answered = seen[layer.name]
        # Of the latents' cells the cat has the top left quarter, the dog the right half. One of a
        # smaller map is the mean of the cells that it stands for.
        finest = torch.zeros(2, side, side)
        finest[0, : side // 2, : side // 2], finest[1, :, side // 2 :] = 1, 1
        held = torch.nn.functional.adaptive_avg_pool2d(finest, round(read.shape[1] ** 0.5)).flatten(1)
        for cell in range(read.shape[1]):
            share = held[:, cell]
            change = (1 - share.sum()) * fused[layer.name].change()
            for part, each in zip(share, (cat, dog), strict=True):
                change = change + part * each.pairs[layer.name].change()
            expected = torch.nn.functional.linear(read[:, cell], layer.module.weight + change, layer.module.bias)
            torch.testing.assert_close(answered[:, cell], expected, rtol=1e-4, atol=1e-4)


def test_the_unet_is_given_back_as_it_was(sixteen, make_concept):
    cat = make_concept(sixteen)
    modules, weights = dict(sixteen.unet.named_modules()), dict(sixteen.unet.named_parameters())
    regions, vocabulary = [Region("<cat>", Box(0, 0, 0.5, 1))], {"<cat>": cat.words[0]}
    with attached_with_own(sixteen, cat.pairs, {"<cat>": cat.pairs}) as own:
        for prompt, places in (("<cat>", []), ("a", regions)):
            draw(sixteen, [prompt], [0], vocabulary=vocabulary, regions=places, how=Drawing(steps=1), own=own)
    with (
        pytest.raises(RuntimeError, match="stopped"),
        attached_with_own(sixteen, cat.pairs, {"<cat>": cat.pairs}) as own,
    ):

        def stop(*_: int) -> None:
            raise RuntimeError("stopped")

        draw(sixteen, ["<cat>"], [0], vocabulary=vocabulary, how=Drawing(steps=1), own=own, on_step=stop)
    assert {name: id(each) for name, each in sixteen.unet.named_modules()} == {n: id(m) for n, m in modules.items()}
    assert {name: id(each) for name, each in sixteen.unet.named_parameters()} == {n: id(w) for n, w in weights.items()}
