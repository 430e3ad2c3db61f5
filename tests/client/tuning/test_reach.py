"""A base reads a number of a caption's tokens, and the concept must be named among them."""

from __future__ import annotations

import pytest

from mos_client.tuning.reach import Reach, words_in_caption
from mos_client.tuning.settings import Method, TuningSettings
from mos_common.errors import RequestError
from mos_common.words import tokenise
from reference.small_tuning import words_at_start


def caption_of(before: int, after: int) -> str:
    """A caption with tokens of one letter each around the concept."""
    return " ".join([*"a" * before, "V", *"b" * after])


@pytest.mark.parametrize("before", [0, 1, 15, 16, 17, 30])
def test_a_caption_is_held_exactly_where_it_can_be_tokenised(sixteen, before):
    """The random base reads 18 tokens; the reference is the tokeniser of drawing and tuning."""
    words = words_at_start(sixteen)
    caption = caption_of(before, 5)
    try:
        text = tokenise(sixteen, caption.replace("V", "<v>"), {"<v>": words})
        fits = len(text.words) == 2
    except RequestError:
        fits = False
    assert Reach(sixteen, 2).holds(caption) == fits == (before <= 16)


def test_tokens_are_counted_up_to_the_last_naming(sixteen):
    reach = Reach(sixteen, 2)
    assert reach.most == sixteen.text_length - 2
    assert reach.count("V") == (2, 2)
    assert reach.count("a a V b") == (5, 4)
    assert reach.count("V a V b b") == (7, 5)


def test_a_shuffle_that_carries_the_concept_out_is_mended(sixteen):
    """The part that names the concept comes first, then the others in the order that was drawn."""
    caption = "a, b b b b b b, V c, " + "d " * 9
    reach = Reach(sixteen, 2)
    assert reach.shuffled(caption, [0, 1, 2]) == ", ".join(part.strip() for part in caption.split(","))
    assert reach.shuffled(caption, [2, 0, 1]).startswith("a, V c, d d")


def test_a_caption_that_only_its_own_order_can_hold_keeps_it(sixteen):
    """The first part is long, and two parts name the concept."""
    caption = "V, " + "a " * 5 + ", V, " + "b " * 12
    reach = Reach(sixteen, 2)
    assert reach.holds(caption)
    for order in ([0, 1, 2], [2, 1, 0], [2, 0, 1]):
        assert reach.holds(reach.shuffled(caption, order))


def test_a_method_without_words_is_named_by_its_class(sixteen):
    rates = {"steps": 1, "batch": 1, "noise_offset": 0.0}
    rates |= {f"learning_rate_{part}": 0.1 for part in ("words", "text", "unet")}
    assert words_in_caption(sixteen, "cat", TuningSettings(**rates)) == 2
    assert words_in_caption(sixteen, "cat", TuningSettings(**rates, words=5)) == 5
    assert words_in_caption(sixteen, "cat cat dog", TuningSettings(**rates, method=Method.PLAIN_LORA)) == 5
