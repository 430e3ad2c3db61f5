"""Where each concept's own change holds: by regions, by the only name, by where words attend."""

from __future__ import annotations

import pytest
import torch

from mos_common.attention import conditioned
from mos_common.conditioning import read_prompts
from mos_common.drawing import Drawing, draw, initial_noise
from mos_common.edlora import attached
from mos_common.layers import Group
from mos_common.own.attach import attached_with_own
from mos_common.own.places import Names, WordPlaces, prompt_shares, word_places
from mos_common.regions import Region
from mos_common.shapes import Box
from mos_common.written_prompts import Phase, read_written_prompts

HOW = Drawing(steps=4)


@pytest.fixture
def cat(sixteen, make_concept):
    return make_concept(sixteen, "<cat>")


@pytest.fixture
def dog(sixteen, make_concept):
    return make_concept(sixteen, "<dog>", seed=1)


@pytest.fixture
def vocabulary(cat, dog):
    return {each.name: each.words[0] for each in (cat, dog)}


@pytest.fixture
def fused(sixteen, make_concept):
    return make_concept(sixteen, seed=7, strength=0.2).pairs


def with_spatial_of(base, fused, own):
    """Return the fused changes with a concept's own in the spatial layers: one model."""
    spatial = {layer.name for layer in base.layout.by_group[Group.SPATIAL]}
    rest = {name: pair for name, pair in fused.items() if name not in spatial}
    return rest | {name: pair for name, pair in own.items() if name in spatial}


def test_one_name_is_drawn_by_its_own_spatial_change_everywhere(sixteen, cat, dog, fused, vocabulary):
    with attached(sixteen, with_spatial_of(sixteen, fused, cat.pairs)):
        expected = draw(sixteen, ["a <cat>"], [0], vocabulary=vocabulary, how=HOW)
    own = {"<cat>": cat.pairs, "<dog>": dog.pairs}
    with attached_with_own(sixteen, fused, own) as changes:
        drawn = draw(sixteen, ["a <cat>"], [0], vocabulary=vocabulary, how=HOW, own=changes)
        again = draw(sixteen, ["a <cat>"], [0], vocabulary=vocabulary, how=HOW)
    assert torch.equal(drawn, expected)
    with attached(sixteen, fused):
        assert torch.equal(again, draw(sixteen, ["a <cat>"], [0], vocabulary=vocabulary, how=HOW))


def test_a_model_of_one_concept_draws_it_as_the_concept_itself(sixteen, cat, vocabulary):
    """With n = 1 and an exact fusion, own and fused are the single model, to the bit."""
    with attached(sixteen, cat.pairs):
        expected = draw(sixteen, ["a <cat>"], [0], vocabulary=vocabulary, how=HOW)
    with attached_with_own(sixteen, cat.pairs, {"<cat>": cat.pairs}) as own:
        assert torch.equal(draw(sixteen, ["a <cat>"], [0], vocabulary=vocabulary, how=HOW, own=own), expected)


def test_one_region_over_everything_is_drawn_as_the_prompt_alone(sixteen, cat, fused, vocabulary):
    """Its cells are all cells; where the prompt names nobody, the region's concept still holds."""
    regions = [Region("a <cat>", Box(0, 0, 1, 1))]
    with attached(sixteen, with_spatial_of(sixteen, fused, cat.pairs)):
        expected = draw(sixteen, ["b"], [0], vocabulary=vocabulary, regions=regions, how=HOW)
    with attached_with_own(sixteen, fused, {"<cat>": cat.pairs}) as own:
        drawn = draw(sixteen, ["b"], [0], vocabulary=vocabulary, regions=regions, how=HOW, own=own)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_pictures_of_a_batch_have_each_their_own(sixteen, cat, dog, fused, vocabulary):
    prompts = ["a <cat>", "a <dog>", "a b"]
    with attached_with_own(sixteen, fused, {"<cat>": cat.pairs, "<dog>": dog.pairs}) as own:
        drawn = draw(sixteen, prompts, [0, 1, 2], vocabulary=vocabulary, how=HOW, own=own)
    for number, changes in enumerate([cat.pairs, dog.pairs, None]):
        with attached(sixteen, fused if changes is None else with_spatial_of(sixteen, fused, changes)):
            alone = draw(sixteen, [prompts[number]], [number], vocabulary=vocabulary, how=HOW)
        torch.testing.assert_close(drawn[number], alone[0], rtol=1e-4, atol=1e-4)


def test_a_region_has_its_own_and_the_prompt_s_one_concept_the_rest():
    names = Names((("<park>",),), (("<cat>",), ("<dog>", "<cat>")))
    slots = names.slots(["<cat>", "<dog>", "<park>"])
    left, top_right = [1, 0, 1, 0], [0, 1, 0, 0]
    held = prompt_shares(names, slots, (0, 1), torch.tensor([left, top_right]).float())
    assert slots == ("<park>", "<cat>")
    # The cat left; top right the region of two, which the fused model draws; below it the park.
    assert held[0, slots.index("<cat>")].tolist() == [1, 0, 1, 0]
    assert held[0, slots.index("<park>")].tolist() == [0, 0, 0, 1]


def test_a_prompt_that_names_several_leaves_what_is_outside_the_regions_to_the_fused_model():
    names = Names((("<cat>", "<dog>"),), (("<cat>",),))
    held = prompt_shares(names, names.slots(["<cat>", "<dog>"]), (0,), torch.tensor([[1.0, 0.0]]))
    assert not names.several
    assert held.tolist() == [[[1, 0]]]


def test_a_concept_without_an_own_change_has_no_slot():
    names = Names((("<cat>",), ("<dog>",)))
    assert names.slots(["<dog>"]) == ("<dog>",)
    assert prompt_shares(names, ("<dog>",), (), torch.zeros(0, 1)).tolist() == [[[0]], [[1]]]


def test_words_hold_where_they_attend_most_and_more_than_on_average():
    """Two maps by hand: of 4 cells the first word has two, the second one, nobody the last."""
    watched = WordPlaces(torch.zeros(1, 2, dtype=torch.long), [["<cat>", "<dog>"]], (2, 2))
    maps = {"<cat>": [0.5, 0.3, 0.1, 0.1], "<dog>": [0.2, 0.3, 0.4, 0.1]}
    watched._seen[0] = torch.tensor([list(maps.values())])
    # In parts of the mean .25: cat 2, 1.2, .4, .4; dog .8, 1.2, 1.6, .4. A draw goes to the first.
    held = watched.fixed(("<dog>", "<cat>"))
    assert held[0, 1].flatten().tolist() == [1, 1, 0, 0]
    assert held[0, 0].flatten().tolist() == [0, 0, 1, 0]


def test_a_word_without_an_own_change_competes_for_cells():
    watched = WordPlaces(torch.zeros(1, 2, dtype=torch.long), [["<cat>", "<dog>"]], (2, 2))
    watched._seen[0] = torch.tensor([[[0.5, 0.3, 0.1, 0.1], [0.6, 0.2, 0.1, 0.1]]])
    assert watched.fixed(("<cat>",))[0, 0].flatten().tolist() == [0, 1, 0, 0]


def test_the_first_steps_of_several_names_are_the_fused_model_s(sixteen, cat, dog, fused, vocabulary):
    """The latents of the watched steps are those without own changes; later ones differ."""
    seen: dict[str, list[torch.Tensor]] = {"fused": [], "own": []}
    conditioning = read_prompts(
        sixteen,
        ["a <cat> b <dog>"],
        vocabulary,
        guidance=3,
        size=(16 // sixteen.pixels_per_latent, 16 // sixteen.pixels_per_latent),
    )
    noise = initial_noise(sixteen, [0], 16, 16)
    rows = torch.cat([noise, noise])
    with attached_with_own(sixteen, fused, {"<cat>": cat.pairs, "<dog>": dog.pairs}) as own, torch.no_grad():
        with conditioned(sixteen, conditioning) as unet:
            seen["fused"] = [unet.predict(rows, torch.tensor(500))] * 4
        with (
            own.placed(["a <cat> b <dog>"], [], vocabulary, [Phase(0, conditioning)], 8) as placed,
            conditioned(sixteen, conditioning, watched=placed.watched) as unet,
        ):
            for step in range(4):
                seen["own"].append(unet.predict(rows, torch.tensor(500)))
                placed.end_step(step + 1, 8)
    same = [torch.equal(one, other) for one, other in zip(seen["own"], seen["fused"], strict=True)]
    assert same == [True, True, False, False]
    assert torch.equal(seen["own"][2], seen["own"][3])  # the places are fixed


def test_the_watched_words_are_those_of_the_prompt(sixteen, vocabulary):
    prompt = "a <cat> b <dog>"
    conditioning = read_prompts(
        sixteen,
        [prompt],
        vocabulary,
        guidance=3,
        size=(16 // sixteen.pixels_per_latent, 16 // sixteen.pixels_per_latent),
    )
    watched = word_places(sixteen, [prompt], vocabulary, [Phase(0, conditioning)], 8)
    # begin, a, cat, cat, b, dog, dog: one position for each of two words of a concept
    assert watched.positions.tolist() == [[0, 0, 0, 0], [2, 3, 5, 6]]


def test_negative_words_are_not_names_of_the_picture(sixteen, cat, fused, vocabulary):
    """Own changes follow the prompt alone."""
    how = Drawing(steps=2, negative="a <cat>")
    with attached_with_own(sixteen, fused, {"<cat>": cat.pairs}) as own:
        drawn = draw(sixteen, ["a b"], [0], vocabulary=vocabulary, how=how, own=own)
        assert torch.equal(drawn, draw(sixteen, ["a b"], [0], vocabulary=vocabulary, how=how))


def test_own_changes_hold_as_long_as_their_region_does(sixteen, cat, fused, vocabulary):
    """Half of the steps with the region, half without: as drawn by hand with the same noise."""
    regions = [Region("a <cat>", Box(0, 0, 1, 1), end=0.5)]
    conditioning = read_prompts(sixteen, ["b"], vocabulary, regions=regions, size=(8, 8))
    with (
        attached_with_own(sixteen, fused, {"<cat>": cat.pairs}) as own,
        own.placed(["b"], regions, vocabulary, [Phase(0, conditioning)], 4) as placed,
    ):
        assert placed.cells.split(64).own is None  # every cell
        placed.end_step(1, 4)
        assert placed.cells.split(64) is not None
        placed.end_step(2, 4)
        assert placed.cells.split(64) is None


def test_names_under_weights_and_in_changes_are_names(sixteen, vocabulary):
    """`(<cat>:1.2)` names the cat, `[<cat>:<dog>:0.5]` both; chunks count their positions on."""
    names = Names.of(sixteen, ["a (<cat>:1.2)", "a [<cat>:<dog>:0.5]"], [], vocabulary)
    assert names.prompts == (("<cat>",), ("<cat>", "<dog>"))
    phases = read_written_prompts(sixteen, ["a (<cat>:1.2) (<dog>)"], vocabulary, steps=4, evaluations=4, size=(8, 8))
    watched = word_places(sixteen, ["a (<cat>:1.2) (<dog>)"], vocabulary, phases, 4)
    assert watched._owners == [["<cat>", "<cat>", "<dog>", "<dog>"]]


def test_a_prompt_that_changes_is_drawn_with_own_changes(sixteen, cat, dog, fused, vocabulary):
    """Words are watched where the first part of the prompt has them: here only the cat's."""
    with attached_with_own(sixteen, fused, {"<cat>": cat.pairs, "<dog>": dog.pairs}) as own:
        drawn = draw(sixteen, ["a [<cat>:<dog>:0.2]"], [0], vocabulary=vocabulary, how=HOW, own=own)
    assert torch.isfinite(drawn).all()
