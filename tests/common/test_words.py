"""A concept's words: where they stand in a prompt, and what each layer reads of them."""

from __future__ import annotations

import logging

import pytest
import torch

from mos_common.conditioning import read_prompts
from mos_common.errors import RequestError
from mos_common.prompt_names import resolve
from mos_common.words import cut_text, encode_prompts, encode_rows, text_rows, tokenise, tokenise_parts


def vocabulary(base, *names: str, words: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (base.layout.word_layers, words, base.token_table.shape[1])
    return {name: torch.randn(shape, generator=generator) * base.token_table.std() for name in names}


def encoded_by_the_table(base, prompt: str, words: torch.Tensor) -> torch.Tensor:
    """Encode as textual inversion does: layer k's vectors are written into the token table.

    `prompt` says "cat cat" where the concept's two words stand; each "cat" gets an id of its own.
    """
    ids = base.tokenizer(
        prompt, padding="max_length", truncation=True, max_length=base.text_length, return_tensors="pt"
    ).input_ids
    (cat,) = base.tokenizer("cat", add_special_tokens=False).input_ids
    places = (ids[0] == cat).nonzero()[:, 0].tolist()
    borrowed = [i for i in range(len(base.token_table)) if i not in ids][: words.shape[1]]
    for i, place in enumerate(places):
        ids[0, place] = borrowed[i % words.shape[1]]
    before = base.token_table.detach().clone()
    features = []
    try:
        for k in range(len(words)):
            base.token_table.data[borrowed] = words[k]
            with torch.no_grad():
                features.append(base.text_encoder(ids).last_hidden_state[0])
    finally:
        base.token_table.data.copy_(before)
    return torch.stack(features)


@pytest.mark.parametrize("prompt", ["", "cat", "a cat in the snow, at night", "CAT!? (really)", "a " * 99])
def test_a_plain_prompt_is_tokenised_as_everywhere_in_stable_diffusion(base, prompt):
    expected = base.tokenizer(prompt, padding="max_length", truncation=True, max_length=base.text_length).input_ids
    assert list(tokenise(base, prompt, {}).ids) == expected


def test_the_end_is_the_first_end_token(base):
    text = tokenise(base, "cat", {})
    assert text.ids[text.end] == base.tokenizer.eos_token_id
    assert text.ids[0] == base.tokenizer.bos_token_id
    assert text.end == 1 + len(base.tokenizer("cat", add_special_tokens=False).input_ids)


def test_a_plain_prompt_has_one_encoding_which_every_layer_reads(base):
    with torch.no_grad():
        features = encode_prompts(base, ["cat, cat"], {})
        ids = base.tokenizer(
            "cat, cat", padding="max_length", max_length=base.text_length, return_tensors="pt"
        ).input_ids
        expected = base.text_encoder(ids).last_hidden_state
    assert features.shape[:2] == (1, base.layout.word_layers)
    for k in range(features.shape[1]):
        torch.testing.assert_close(features[:, k], expected)


@pytest.mark.parametrize("prompt", ["<cat>", "a <cat>, it", "<cat> <cat>", "a<cat>!"])
def test_layer_k_reads_encoding_k(base, prompt):
    known = vocabulary(base, "<cat>")
    with torch.no_grad():
        features = encode_prompts(base, [prompt], known)[0]
    expected = encoded_by_the_table(base, prompt.replace("<cat>", " cat cat "), known["<cat>"])
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(features[0], features[1])


def test_words_are_replaced_only_where_they_stand(base):
    """All before the concept is what it is without it: CLIP's text encoder looks back only."""
    known = vocabulary(base, "<cat>")
    with torch.no_grad():
        with_concept = encode_prompts(base, ["a a <cat> a"], known)[0]
        without = encode_prompts(base, ["a a"], known)[0]
    position = tokenise(base, "a a <cat> a", known).words[0][0]
    torch.testing.assert_close(with_concept[:, :position], without[:, :position])
    assert (with_concept[:, position:] - without[:, position:]).abs().amax(dim=-1).min() > 1e-4


def test_the_table_and_its_hooks_are_as_before(base):
    table, before = base.text_encoder.get_input_embeddings(), base.token_table.clone()
    encode_prompts(base, ["<cat>"], vocabulary(base, "<cat>"))
    with pytest.raises(IndexError):
        encode_prompts(base, ["<cat>"], {"<cat>": vocabulary(base, "<cat>")["<cat>"][:2]})
    assert torch.equal(base.token_table, before)
    assert not table._forward_hooks


def test_gradients_reach_the_words_and_only_through_their_places(base):
    words = vocabulary(base, "<cat>")["<cat>"].requires_grad_()
    encode_prompts(base, ["<cat>"], {"<cat>": words})[0, 3].sum().backward()
    touched = words.grad.abs().amax(dim=(1, 2)) > 0
    assert touched.tolist() == [k == 3 for k in range(len(words))]
    assert base.token_table.grad is None


def test_equal_rows_are_encoded_once(base):
    known, layers = vocabulary(base, "<cat>"), base.layout.word_layers
    texts = [tokenise(base, prompt, known) for prompt in ("a", "<cat>", "a", "<cat>", "")]
    rows = text_rows(base, texts, known)
    assert len(rows.texts) == 2 + layers
    assert rows.index[0] == rows.index[2] == (rows.index[0][0],) * layers
    assert rows.index[1] == rows.index[3]
    assert len(set(rows.index[1])) == layers

    batches = []
    handle = base.text_encoder.register_forward_pre_hook(lambda _m, args: batches.append(args[0].shape[0]))
    try:
        encode_prompts(base, ["a", "<cat>", "a", "<cat>", ""], known)
    finally:
        handle.remove()
    assert batches == [2 + layers], "one pass, each distinct row once"


def test_rows_and_prompts_are_the_same_features(base):
    known = vocabulary(base, "<cat>")
    texts = [tokenise(base, prompt, known) for prompt in ("<cat> a", "a")]
    rows = text_rows(base, texts, known)
    features = encode_rows(base, rows, known)
    together = encode_prompts(base, ["<cat> a", "a"], known)
    for p in range(2):
        for k, row in enumerate(rows.index[p]):
            assert torch.equal(together[p, k], features[row])


def test_a_concept_of_one_or_three_words_takes_as_many_places(base):
    for words in (1, 3):
        known = vocabulary(base, "<cat>", words=words)
        assert [word for _, _, word in tokenise(base, "a <cat>", known).words] == list(range(words))


def test_two_concepts_stand_side_by_side(base):
    known = vocabulary(base, "<cat>", "<dog>")
    assert [(token, word) for _, token, word in tokenise(base, "<dog> <cat>", known).words] == [
        ("<dog>", 0),
        ("<dog>", 1),
        ("<cat>", 0),
        ("<cat>", 1),
    ]


def test_a_name_alone_is_enough_while_only_one_participant_has_it():
    known = dict.fromkeys(("<alice/cat>", "<bob/cat>", "<bob/dog>"))
    assert resolve("<alice/cat>", known) == "<alice/cat>"
    assert resolve("<dog>", known) == "<bob/dog>"


def test_an_ambiguous_name_lists_the_candidates():
    with pytest.raises(RequestError, match=r"<cat> could be any of <alice/cat>, <bob/cat>"):
        resolve("<cat>", dict.fromkeys(("<bob/cat>", "<alice/cat>", "<bob/dog>", "<eve/bobcat>")))


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(RequestError, match=r"unknown concept <cow>; known: <alice/cat>"):
        resolve("<cow>", {"<alice/cat>": None})
    with pytest.raises(RequestError, match="known: none"):
        resolve("<cow>", {})
    with pytest.raises(RequestError, match="unknown concept <cat>"):
        resolve("<cat>", {"<alice/bobcat>": None})


def test_a_prompt_names_concepts_by_participant_or_alone(base):
    known = vocabulary(base, "<alice/cat>", "<bob/dog>")
    texts = [tokenise(base, prompt, known) for prompt in ("<alice/cat> a", "<cat> a")]
    assert texts[0] == texts[1]


def test_text_beyond_the_length_is_cut_but_a_concept_there_is_an_error(base):
    known, long = vocabulary(base, "<cat>"), "a " * (base.text_length - 4)
    text = tokenise(base, f"{long}<cat>", known)
    assert text.words[-1][0] == base.text_length - 2, "the last place before the end token"
    assert len(text.ids) == base.text_length
    with pytest.raises(RequestError, match=r"too long: <cat> comes after"):
        tokenise(base, f"{long}a <cat>", known)
    assert len(tokenise(base, f"<cat> {long * 2}", known).ids) == base.text_length


@pytest.mark.parametrize("prompt", ["a < b > c", "<>", "<a b>", "I <3 it", "x -> y", "a cat > a dog"])
def test_what_has_not_the_form_of_a_name_is_plain_text(base, prompt):
    known = vocabulary(base, "<alice/violin>")
    assert tokenise(base, prompt, known).ids == tokenise_parts(base, [prompt], [], {}).ids
    assert tokenise(base, prompt, known).words == ()


@pytest.mark.parametrize(
    "prompt",
    ["<Cat>", "< cat>", "<cat >", "<CAT>", "<Alice/cat>", "<alice /cat>", "<cat:1.3>", "<cats>", "<cat", "a cat> sits",
     "‹cat›", "＜cat＞", "&lt;cat&gt;", "<alice/cat on a chair", "« cat »"],
)  # fmt: skip
def test_what_is_nearly_a_concept_is_an_error_with_the_near_one(base, prompt):
    """Whoever writes it means the concept; drawn as plain text it would be nobody."""
    known = vocabulary(base, "<alice/cat>", "<bob/violin>")
    with pytest.raises(RequestError, match=r"did you mean <alice/cat>\?"):
        tokenise(base, f"{prompt} in the snow", known)


@pytest.mark.parametrize("prompt", ["<Horse>", "<lora:style:0.8>", "<Bob/horse>", "<endoftext>"])
def test_a_name_near_no_concept_is_an_error_too(base, prompt):
    with pytest.raises(RequestError, match=r"unknown concept .*; known: <cat>"):
        tokenise(base, prompt, vocabulary(base, "<cat>"))


@pytest.mark.parametrize(
    ("tag", "example"),
    [
        ("<lora:style:0.8>", r"\(<bob/dog>:0.8\)"),
        ("<lora:my style>", "<bob/dog>"),
        ("<LyCO:kat:1>", r"\(<carol/kat>:1\)"),
    ],
)
def test_the_tag_of_a_lora_file_says_how_concepts_are_named_here(base, tag, example):
    known = vocabulary(base, "<carol/kat>", "<bob/dog>")
    with pytest.raises(
        RequestError, match=rf"No file is loaded by a prompt here.*such as {example}; `mos-client import`"
    ):
        tokenise(base, f"a photo, {tag}", known)


def test_a_weight_within_the_name_is_told_where_it_belongs(base):
    with pytest.raises(RequestError, match=r"did you mean <alice/cat>\?.*A weight is written \(<alice/cat>:1\.3\)"):
        tokenise(base, "<cat:1.3> in snow", vocabulary(base, "<alice/cat>"))


def test_what_is_cut_is_the_end_of_the_prompt(base):
    known = vocabulary(base, "<cat>")
    fits = "<cat> " + "a " * (base.text_length - 4)
    assert cut_text(base, fits, known) == ""
    assert cut_text(base, f"{fits} in snow", known) == "in snow"


def test_a_cut_is_logged_once_for_each_prompt(tiny, caplog):
    long = "a " * (tiny.text_length - 2) + "house at night"
    with caplog.at_level(logging.WARNING), torch.no_grad():
        read_prompts(tiny, [long, long], {}, guidance=2, negative="b " * tiny.text_length)
    ours = [record for record in caplog.records if record.name.startswith("mos_common")]  # transformers says it once
    assert [record.args[2] for record in ours] == ["b b", "house at night"]


def test_texts_around_a_concept_are_the_prompt_that_names_it(sixteen):
    words = vocabulary(sixteen, "<cat>")
    parts = tokenise_parts(sixteen, ["a photo of ", " beside ", ""], ["<cat>", "<cat>"], words)
    assert parts == tokenise(sixteen, "a photo of <cat> beside <cat>", words)


def test_a_text_around_a_concept_may_hold_what_a_prompt_would_take_for_another(sixteen):
    words = vocabulary(sixteen, "<cat>")
    with pytest.raises(RequestError, match="unknown concept <b>"):
        tokenise(sixteen, "<cat>, <b>a", words)
    parts = tokenise_parts(sixteen, ["", ", <b>a"], ["<cat>"], words)
    plain = sixteen.tokenizer(", <b>a", add_special_tokens=False).input_ids
    assert list(parts.ids[3 : parts.end]) == plain
