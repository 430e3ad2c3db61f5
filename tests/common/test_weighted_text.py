"""Weights on encodings, and texts that are longer than the encoder reads."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from mos_common.errors import RequestError
from mos_common.prompt_grammar import Part, parse_prompt
from mos_common.weighted_text import MOST_CHUNKS, encode_weighted, lengthened, weighted_text
from mos_common.words import encode_prompts, encode_token_ids, tokenise


def vocabulary(base, *names: str, words: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (base.layout.word_layers, words, base.word_width)
    return {name: torch.randn(shape, generator=generator) * base.token_table.std() for name in names}


def text_of(base, prompt: str, known=None):
    return weighted_text(base, parse_prompt(prompt).parts(0, 20, 20), known or {})


def encoded(base, prompt: str, known=None) -> torch.Tensor:
    with torch.no_grad():
        return encode_weighted(base, [text_of(base, prompt, known)], known or {})[0]


@pytest.fixture(params=["tiny", "sixteen", "xl"])
def any_base(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("prompt", ["", "a cat in the snow", "a <cat>, it!", "CAT!! at <cat>'s"])
def test_a_plain_text_is_tokenised_and_encoded_as_ever(any_base, prompt):
    known = vocabulary(any_base, "<cat>")
    (chunk,) = text_of(any_base, prompt, known).chunks
    assert chunk.ids == tokenise(any_base, prompt, known)
    with torch.no_grad():
        assert torch.equal(encoded(any_base, prompt, known), encode_prompts(any_base, [prompt], known)[0])


@pytest.mark.parametrize("prompt", ["(a:1) cat in (the snow:1)", "([a cat]) in the snow", "a cat (in:1.0) the snow"])
def test_a_weight_of_1_changes_no_bit(any_base, prompt):
    assert torch.equal(encoded(any_base, prompt), encoded(any_base, "a cat in the snow"))


@pytest.mark.parametrize("weight", [0, 0.5, 1.3, 2])
def test_a_weight_moves_the_encodings_of_its_words_away_from_the_empty_text(any_base, weight):
    """By hand: e + w (z - e) at the places of the weighted words, in every layer."""
    known = vocabulary(any_base, "<cat>")
    plain, empty = encoded(any_base, "a <cat> cat", known), encoded(any_base, "", known)
    places = [place for place, _, _ in tokenise(any_base, "a <cat> cat", known).words]
    expected = plain.clone()
    expected[:, places] = empty[:, places] + weight * (plain[:, places] - empty[:, places])
    torch.testing.assert_close(encoded(any_base, f"a (<cat>:{weight}) cat", known), expected)
    assert weight == 0 or not torch.equal(expected[0], expected[1]), "each layer keeps its own encoding"


def test_a_weight_of_0_is_the_empty_text_there(tiny):
    (chunk,) = text_of(tiny, "(a cat:0)").chunks
    torch.testing.assert_close(
        encoded(tiny, "(a cat:0)")[:, 1 : chunk.ids.end], encoded(tiny, "")[:, 1 : chunk.ids.end]
    )


def test_the_first_chunk_of_a_long_text_is_the_text_alone(any_base):
    """And the second is what follows, with a start and an end of its own."""
    room = any_base.text_length - 2
    first, second = "a " * room, "b c"
    with torch.no_grad():
        long = encoded(any_base, first + second)
        both = encode_prompts(any_base, [first, second], {})
    assert long.shape[1] == 2 * any_base.text_length
    torch.testing.assert_close(long, torch.cat([both[0], both[1]], dim=1))


def test_a_chunk_ends_at_a_comma_near_its_end(tiny):
    room = tiny.text_length - 2
    text = "cat " * (room - 4) + ", dog dog dog dog dog"
    texts = [chunk.ids.ids[1 : chunk.ids.end] for chunk in text_of(tiny, text).chunks]
    assert tiny.tokenizer.decode(texts[0]).endswith("cat ,") or tiny.tokenizer.decode(texts[0]).endswith("cat,")
    assert tiny.tokenizer.decode(texts[1]).strip() == "dog dog dog dog dog"
    far = text_of(tiny, "cat , " + "dog " * room).chunks
    assert far[0].ids.end == room + 1, "a comma at the beginning cuts nothing off"


@pytest.mark.parametrize("before", range(50, 56))
def test_a_concept_s_words_stay_in_one_chunk_wherever_it_stands(tiny, before):
    known = vocabulary(tiny, "<cat>", words=3)
    chunks = text_of(tiny, "a " * before + "<cat>", known).chunks
    found = [[word for _, _, word in chunk.ids.words] for chunk in chunks]
    assert [each for each in found if each] == [[0, 1, 2]]
    alone = encoded(tiny, "a " * (tiny.text_length - 5) + "<cat>", known)
    assert alone.shape[1] == tiny.text_length


def test_a_concept_in_the_second_chunk_is_encoded_as_in_a_prompt_of_its_own(any_base):
    known = vocabulary(any_base, "<cat>")
    room = any_base.text_length - 2
    long = encoded(any_base, "a " * room + "b <cat> c", known)
    with torch.no_grad():
        own = encode_prompts(any_base, ["b <cat> c"], known)[0]
    torch.testing.assert_close(long[:, any_base.text_length :], own, rtol=1e-4, atol=1e-5)


def test_shorter_texts_are_followed_by_the_empty_text(tiny):
    long = text_of(tiny, "a " * 60)
    texts = lengthened(tiny, [text_of(tiny, "a cat"), long], 2)
    with torch.no_grad():
        features = encode_weighted(tiny, texts, {})
        both = encode_prompts(tiny, ["a cat", ""], {})
    torch.testing.assert_close(features[0], torch.cat([both[0], both[1]], dim=1))


def test_what_is_beyond_all_chunks_is_cut_and_a_concept_there_is_an_error(tiny):
    known, room = vocabulary(tiny, "<cat>"), tiny.text_length - 2
    fits = "a " * (MOST_CHUNKS * room)
    assert text_of(tiny, fits).cut == ""
    assert text_of(tiny, f"{fits} dog cat").cut == "dog cat"
    assert len(text_of(tiny, f"{fits} dog cat").chunks) == MOST_CHUNKS
    with pytest.raises(RequestError, match=rf"<cat> comes after the {MOST_CHUNKS * room} tokens"):
        text_of(tiny, f"{fits} <cat>", known)


def test_a_concept_of_more_words_than_the_base_reads_is_refused(tiny):
    with pytest.raises(RequestError, match="<cat> is 55 words, more than the 54"):
        text_of(tiny, "<cat>", vocabulary(tiny, "<cat>", words=55))


def test_xl_s_tokenizers_stay_together_where_they_read_other_tokens(xl):
    """The second pads with "!", and so reads "!!" as two tokens."""
    known, room = vocabulary(xl, "<cat>"), xl.text_length - 2
    for count in range(room - 4, room + 2):
        chunks = text_of(xl, "a " * count + "a! a!! <cat> !!! b", known).chunks
        for chunk in chunks:
            assert len(chunk.ids.ids) == len(chunk.ids.second.ids) == xl.text_length
            assert [word for _, _, word in chunk.ids.words] == [word for _, _, word in chunk.ids.second.words]
            for ids in (chunk.ids, chunk.ids.second):
                assert len(ids.words) in (0, 2)
    for text in ("!" * 60, "a" * 60):
        counted = [text_of(xl, text).chunks]
        assert sum(chunk.ids.second.end - 1 for chunk in counted[0]) == len(
            xl.tokenizer_2(text, add_special_tokens=False).input_ids
        )


def test_each_of_xl_s_encoders_has_the_weight_at_its_own_places(xl):
    """Weighted words after "!!" stand at other places for the second tokenizer."""
    (chunk,) = weighted_text(xl, [Part("a!! "), Part("cat", 2.0)], {}).chunks
    for ids, weights in zip((chunk.ids, chunk.ids.second), chunk.weights, strict=True):
        (cat,) = xl.tokenizer("cat", add_special_tokens=False).input_ids
        assert [ids.ids[place] for place, weight in enumerate(weights) if weight == 2] == [cat]


def test_equal_chunks_are_encoded_once(tiny):
    batches = []
    handle = tiny.text_encoder.register_forward_pre_hook(lambda _m, args: batches.append(args[0].shape[0]))
    try:
        with torch.no_grad():
            texts = lengthened(tiny, [text_of(tiny, "a cat"), text_of(tiny, "a dog"), text_of(tiny, "a " * 60)], 2)
            encode_weighted(tiny, texts, {})
    finally:
        handle.remove()
    assert batches == [5], "cat, dog, the empty text once, and the two chunks of the long one"


def test_half_precision_has_weights_too(tiny):
    with torch.no_grad():
        half = replace(tiny, text_encoder=copy.deepcopy(tiny.text_encoder).bfloat16())
        features = encode_weighted(half, [text_of(half, "a (cat:1.3)")], {})
        assert features.dtype == torch.bfloat16
        plain = encode_token_ids(half, [tokenise(half, "a cat", {})], {})
    assert torch.equal(features[0, :, :2], plain[0, :, :2])
    assert not torch.equal(features, plain)
