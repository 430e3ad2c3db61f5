"""Admission to a round, and every reason for refusal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from mos_common.concept_file import concept_to_bytes, content_digest
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError
from mos_server.admission import admit


@pytest.fixture
def concept(tiny, make_concept):
    return make_concept(tiny, "<cat>", licence="CC0", author="alice")


def with_pair(concept, name: str, pair: LowRank):
    return replace(concept, pairs={**concept.pairs, name: pair})


def edited(data: bytes, **header: object) -> bytes:
    """The same file with other metadata."""
    described = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = json.loads(described["__metadata__"]["mos"]) | header
    return save(load(data), {"mos": json.dumps(metadata)})


def test_a_sound_concept_is_admitted_as_it_is(base, make_concept):
    concept = make_concept(base, "<cat>", licence="CC0", author="alice")
    admitted = admit(concept_to_bytes(concept, torch.float32), base)
    assert (admitted.name, admitted.class_word, admitted.licence, admitted.author) == ("<cat>", "cat", "CC0", "alice")
    for name, pair in concept.pairs.items():
        torch.testing.assert_close(admitted.pairs[name].change(), pair.change())
    assert torch.equal(admitted.words[0], concept.words[0])


def test_a_concept_of_an_earlier_release_is_admitted_under_todays_fingerprint(base, make_concept):
    concept = make_concept(base)
    admitted = admit(concept_to_bytes(replace(concept, base_fingerprint=base.legacy_fingerprint)), base)
    assert admitted.base_fingerprint == base.fingerprint
    assert content_digest(admitted) == content_digest(admit(concept_to_bytes(concept), base))


@pytest.mark.parametrize("field", ["class_word", "author", "licence", "trigger", "tool"])
@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\u200b", "\u2028", "\ufeff", "\u3164", "\ue000"])
def test_a_text_with_a_character_that_is_not_seen_is_refused_by_its_code_point(tiny, concept, field, character):
    data = edited(concept_to_bytes(concept), **{field: f"a{character}b"})
    with pytest.raises(ConceptError, match=rf"metadata field '{field}': character 2 is U\+{ord(character):04X} "):
        admit(data, tiny)


def test_an_old_fingerprint_of_another_base_is_refused_as_such(tiny, sixteen, make_concept):
    old = replace(make_concept(tiny), base_fingerprint=sixteen.legacy_fingerprint)
    with pytest.raises(ConceptError, match=f"{sixteen.legacy_fingerprint[:12]} is a fingerprint by the old rule"):
        admit(concept_to_bytes(old), tiny)


def test_a_concept_without_words_or_with_few_layers_is_admitted(tiny, make_concept):
    plain = make_concept(tiny, "<cat>", words=0)
    some = dict(list(plain.pairs.items())[::9])
    assert admit(concept_to_bytes(replace(plain, pairs=some)), tiny).pairs.keys() == some.keys()


def test_bytes_that_are_no_concept_file_are_refused(tiny):
    for data in (b"", b"not a file", b"\xff" * 100):
        with pytest.raises(ConceptError):
            admit(data, tiny)


def test_a_concept_of_another_base_is_refused(tiny, sixteen, make_concept):
    with pytest.raises(ConceptError, match=r"tuned on base model .* this is tiny"):
        admit(concept_to_bytes(make_concept(sixteen)), tiny)


def test_a_layer_that_the_base_does_not_have_is_named(tiny, concept):
    pair = LowRank(torch.randn(2, 8), torch.randn(8, 2), 2.0)
    with pytest.raises(ConceptError, match=r"unet\.conv_in is not a layer of the base"):
        admit(concept_to_bytes(with_pair(concept, "unet.conv_in", pair)), tiny)


def test_every_wrong_shape_is_named(tiny, concept):
    """All reasons in one verdict."""
    one, other = tiny.layout.attention[0], tiny.layout.attention[-1]
    wrong = with_pair(concept, one.name, LowRank(torch.randn(2, one.d_in + 1), torch.randn(one.d_out, 2), 2.0))
    wrong = with_pair(wrong, other.name, LowRank(torch.randn(2, other.d_in), torch.randn(other.d_out + 1, 2), 2.0))
    with pytest.raises(ConceptError) as refused:
        admit(concept_to_bytes(wrong), tiny)
    assert f"{one.name}.lora_A.weight has shape (2, {one.d_in + 1})" in str(refused.value)
    assert f"{other.name}.lora_B.weight has shape ({other.d_out + 1}, 2)" in str(refused.value)


@pytest.mark.parametrize("shape", [(1, 2, 0), (0, 2, 1)], ids=["too few layers", "too wide"])
def test_words_of_another_shape_are_refused(tiny, concept, shape):
    layers, words, width = concept.words[0].shape
    other = torch.randn(layers - shape[0], words, width + shape[2])
    with pytest.raises(ConceptError, match=r"embeddings\.0 has shape"):
        admit(concept_to_bytes(replace(concept, words=(other,))), tiny)


def test_words_for_a_second_text_encoder_are_refused(tiny, concept):
    with pytest.raises(ConceptError, match="2 text encoders, the base has 1"):
        admit(concept_to_bytes(replace(concept, words=(concept.words[0], concept.words[0].clone()))), tiny)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(tiny, concept, value):
    tensors = load(concept_to_bytes(concept, torch.float32))
    name = next(iter(tensors))
    tensors[name].flatten()[3] = value
    header = json.loads(concept_to_bytes(concept, torch.float32)[8:].split(b"}}", 1)[0] + b"}}")["__metadata__"]
    with pytest.raises(ConceptError, match="NaN or infinity"):
        admit(save(tensors, header), tiny)


def test_a_change_larger_than_its_layer_is_refused_and_measured(tiny, concept):
    """The norm of s·B·A is that of the dense product; just below the layer's norm it passes."""
    layer, pair = tiny.layout.attention[5], concept.pairs[tiny.layout.attention[5].name]
    own, most = float(pair.change().norm()), float(layer.module.weight.norm())
    for share, admitted in ((0.99, True), (1.01, False)):
        scaled = with_pair(concept, layer.name, LowRank(pair.A, pair.B * (share * most / own), pair.alpha))
        data = concept_to_bytes(scaled, torch.float32)
        if admitted:
            admit(data, tiny)
        else:
            with pytest.raises(ConceptError, match=rf"{layer.name} is changed by norm {share * most:.3g}, at most"):
                admit(data, tiny)


def test_alpha_counts_in_the_norm(tiny, concept):
    data = concept_to_bytes(concept)
    loud = {name: [pair.rank, 1000.0] for name, pair in concept.pairs.items()}
    with pytest.raises(ConceptError, match="is changed by norm"):
        admit(edited(data, layers=loud), tiny)


def test_another_alpha_is_another_content(tiny, concept):
    """So it is not taken for the concept admitted before, and does not find its kept moments."""
    data = concept_to_bytes(concept)
    half = edited(data, layers={name: [pair.rank, pair.rank / 2] for name, pair in concept.pairs.items()})
    free = edited(data, licence="CC-BY")
    digests = [content_digest(admit(it, tiny)) for it in (data, half, free)]
    assert digests[0] == digests[2] != digests[1]


def test_a_word_that_drowns_its_prompt_is_refused(tiny, concept):
    with pytest.raises(ConceptError, match=r"a word has norm .*, at most .* is admitted"):
        admit(concept_to_bytes(replace(concept, words=(concept.words[0] * 50,))), tiny)


def test_an_empty_concept_is_refused(tiny, concept):
    with pytest.raises(ConceptError, match="empty"):
        admit(concept_to_bytes(replace(concept, pairs={}, words=())), tiny)


@pytest.mark.parametrize("class_word", ["<dog>", "a <alice/cat>", "", "   "])
def test_a_class_word_that_is_no_word_is_refused(tiny, concept, class_word):
    """It is part of prompts; a token in it would name another concept, or none."""
    with pytest.raises(ConceptError, match="class word"):
        admit(concept_to_bytes(replace(concept, class_word=class_word)), tiny)
