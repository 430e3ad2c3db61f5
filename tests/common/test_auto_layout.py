"""Regions that nobody drew: prompts, equal parts, and where class words attend."""

from __future__ import annotations

import pytest
import torch

from mos_common.auto_layout import named_in, parted, side_by_side, where_attended
from mos_common.drawing import Drawing, draw
from mos_common.errors import RequestError
from mos_common.regions import shares
from mos_common.shapes import Box

CLASSES = {"<alice/tom>": "man", "<bob/rex>": "dog", "<carol/shore>": "beach"}
PROMPT = "a <tom> and a <bob/rex> on the <shore>"
WIDE = Drawing(width=128, height=64)


@pytest.fixture
def vocabulary(tiny) -> dict[str, torch.Tensor]:
    """Concepts whose words are those of their classes, once each."""
    ids = {token: tiny.tokenizer(word, add_special_tokens=False).input_ids for token, word in CLASSES.items()}
    return {token: tiny.token_table[list(of_token)][None].clone() for token, of_token in ids.items()}


def test_each_concept_gets_an_equal_part_and_a_prompt_with_the_others_classes(vocabulary):
    """A place is in every prompt and has no part."""
    named = named_in(PROMPT, vocabulary, CLASSES)
    first, second = side_by_side(named)
    assert named.told() == "a man and a dog on the <carol/shore>"
    assert (first.prompt, first.shape) == ("a <alice/tom> and a dog on the <carol/shore>", Box(0, 0, 0.5, 1))
    assert (second.prompt, second.shape) == ("a man and a <bob/rex> on the <carol/shore>", Box(0.5, 0, 1, 1))


def test_a_concept_named_twice_has_one_region_and_both_names_in_it(vocabulary):
    named = named_in("<tom> beside <rex>, <tom> smiles", vocabulary, CLASSES)
    assert [region.prompt for region in side_by_side(named)] == [
        "<alice/tom> beside dog, <alice/tom> smiles",
        "man beside <bob/rex>, man smiles",
    ]


@pytest.mark.parametrize("prompt", ["a meadow", "on the <shore>", "a <b> in italics"])
def test_a_prompt_without_anybody_to_lay_out_is_refused(vocabulary, prompt):
    with pytest.raises(RequestError, match="--auto-layout finds no concept to lay out in the prompt"):
        named_in(prompt, vocabulary, CLASSES)


def test_a_concept_of_unknown_kind_is_refused_by_name(vocabulary):
    with pytest.raises(RequestError, match="does not say what kind of thing <bob/rex> is: give regions"):
        named_in(PROMPT, vocabulary, {**CLASSES, "<bob/rex>": ""})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("order", [("a <tom> on the left and a <rex> on the right", 0), ("a <rex> and a <tom>", 1)])
def test_regions_are_where_the_base_draws_the_class_words(tiny, vocabulary, order, seed):
    """`tiny` draws what is named first on the left, so its region lies left."""
    prompt, first = order
    named = named_in(prompt, vocabulary, CLASSES)
    regions = where_attended(tiny, named, seed, vocabulary, WIDE)
    share = shares(regions, 16, 32)
    columns = (torch.arange(32) + 0.5) / 32
    middles = [(each.sum(dim=0) * columns).sum() / each.sum() for each in share]
    assert len(regions) == 2
    assert middles[0] + 0.2 < middles[1]
    assert regions[0].prompt == named.told(("<alice/tom>", "<bob/rex>")[first])
    assert 0.05 < share.sum(dim=0).mean() < 0.9, "the rest is the prompt's"


def test_a_prompt_is_read_by_the_grammar(tiny, vocabulary):
    """A weight of 1 is no weight: brackets are not read as text."""
    prompts = ("a <tom> on the left and a <rex>", "a (<tom>:1.0) on the left and a (<rex>:1.0)")
    laid_out = [where_attended(tiny, named_in(prompt, vocabulary, CLASSES), 0, vocabulary, WIDE) for prompt in prompts]
    shapes = [[region.shape.cover(16, 32) for region in regions] for regions in laid_out]
    assert all(torch.equal(*pair) for pair in zip(*shapes, strict=True))


def test_a_weight_has_its_effect_however_it_is_written(tiny, vocabulary):
    """Two pairs of brackets are 1.1 times 1.1; as text they would be other words."""

    def shape(written: str, seed: int) -> torch.Tensor:
        named = named_in(written, vocabulary, CLASSES)
        return where_attended(tiny, named, seed, vocabulary, WIDE)[1].shape.cover(16, 32)

    assert torch.equal(shape("a <tom> and a ((<rex>))", 0), shape("a <tom> and a (<rex>:1.21)", 0))
    light, heavy = ([shape(f"a <tom> and a (<rex>:{weight})", seed) for seed in range(3)] for weight in (0.5, 1.5))
    assert not torch.equal(torch.stack(light), torch.stack(heavy))


def test_a_concept_that_comes_later_has_no_place(tiny, vocabulary):
    named = named_in("a <tom> beside a [tree:<rex>:0.5]", vocabulary, CLASSES)
    with pytest.raises(RequestError, match="the first steps say nothing of <bob/rex>: give regions"):
        where_attended(tiny, named, 0, vocabulary, WIDE)


def test_a_layout_is_a_value_of_prompt_size_and_seed_and_leaves_the_base_as_it_was(tiny, vocabulary):
    named, before = named_in(PROMPT, vocabulary, CLASSES), draw(tiny, ["a dog"], [0], how=Drawing(steps=2))
    first = where_attended(tiny, named, 3, vocabulary, WIDE)
    assert first == where_attended(tiny, named, 3, vocabulary, WIDE)
    assert torch.equal(before, draw(tiny, ["a dog"], [0], how=Drawing(steps=2)))


def test_a_cell_goes_to_the_word_that_has_most_of_it_for_its_mean(vocabulary):
    """The second word attends ten times less everywhere, and most on the right: that is its part.

    The columns in the middle are nobody's: there both have less than their mean.
    """
    named = named_in("a <tom> and a <rex>", vocabulary, CLASSES)
    left = torch.ones(4, 12)
    left[:, :4] = 10
    first, second = parted(named, torch.stack([left, left.flip(1) / 10]))
    for region, columns in ((first, range(4)), (second, range(8, 12))):
        expected = torch.tensor([[float(column in columns) for column in range(12)]] * 4, dtype=torch.float64)
        torch.testing.assert_close(region.shape.cover(4, 12), expected)


def test_a_class_word_that_attends_nowhere_is_an_error_with_a_way_out(vocabulary):
    named = named_in("a <tom> and a <rex>", vocabulary, CLASSES)
    attended = torch.ones(2, 8, 8)
    attended[0, :, :4] = 3
    with pytest.raises(
        RequestError, match=r"puts 'dog' \(<bob/rex>\) nowhere: try another --seed, or --auto-layout sid"
    ):
        parted(named, attended)
