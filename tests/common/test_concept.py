"""A concept: its name, and whether it fits a base model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_common.concept import check_fits
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError, RequestError
from mos_common.names import check_concept_name


@pytest.mark.parametrize("name", ["<cat>", "<a>", "<0>", "<my-dog_2>"])
def test_names_of_the_grammar_are_names(name):
    assert check_concept_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "cat",
        "",
        "<>",
        "<Cat>",
        "<-cat>",
        "<_cat>",
        "<a cat>",
        "<alice/cat>",
        "<cat>\n",
        " <cat>",
        "<käse>",
        "<cat><cat>",
    ],
)
def test_other_names_are_refused_with_an_example(name, make_concept, sixteen):
    with pytest.raises(RequestError, match='write it like "<cat>"'):
        check_concept_name(name)
    with pytest.raises(RequestError):
        make_concept(sixteen, name)


def test_a_concept_fits_the_base_it_was_made_on(base, make_concept):
    check_fits(make_concept(base), base)


def test_a_concept_may_change_some_layers_only_and_have_no_words(base, make_concept):
    concept = make_concept(base, words=0)
    check_fits(replace(concept, pairs=dict(list(concept.pairs.items())[3:5])), base)
    check_fits(replace(concept, pairs={}), base)


def test_ranks_may_differ_from_layer_to_layer(base, make_concept):
    concept = make_concept(base)
    layer = base.layout.attention[0]
    pair = LowRank(torch.zeros(7, layer.d_in), torch.zeros(layer.d_out, 7), 7.0)
    check_fits(replace(concept, pairs={**concept.pairs, layer.name: pair}), base)


def test_another_base_is_named_by_both_fingerprints(tiny, sixteen, make_concept):
    with pytest.raises(ConceptError, match=f"{sixteen.fingerprint[:12]}.*tiny.*{tiny.fingerprint[:12]}"):
        check_fits(make_concept(sixteen), tiny)


def test_every_tensor_that_does_not_fit_is_named_with_what_is_needed(sixteen, make_concept):
    concept = make_concept(sixteen)
    a, b, c = (layer.name for layer in sixteen.layout.attention[:3])
    pairs = dict(concept.pairs)
    pairs[a] = replace(pairs[a], A=torch.zeros(2, 5))
    pairs[b] = replace(pairs[b], B=torch.full_like(pairs[b].B, torch.inf))
    pairs[c] = replace(pairs[c], B=torch.zeros(5, 2))
    pairs["unet.conv_in"] = pairs[a]
    with pytest.raises(ConceptError) as caught:
        check_fits(replace(concept, pairs=pairs), sixteen)
    text = str(caught.value)
    d_in = sixteen.layout.attention[0].d_in
    assert f"{a}.lora_A.weight has shape (2, 5), the base needs (2, {d_in})" in text
    assert f"{b}.lora_B.weight holds NaN or infinity" in text
    assert f"{c}.lora_B.weight has shape (5, 2)" in text
    assert "unet.conv_in is not a layer of the base" in text


@pytest.mark.parametrize("wrong", ["layers", "width", "flat", "nan", "two encoders"])
def test_words_must_fit_too(sixteen, make_concept, wrong):
    concept = make_concept(sixteen)
    words = concept.words[0]
    broken = {
        "layers": (words[:-1],),
        "width": (words[..., :-1],),
        "flat": (words[:, 0],),
        "nan": (words * torch.nan,),
        "two encoders": (words, words),
    }[wrong]
    with pytest.raises(ConceptError, match=r"embeddings") as caught:
        check_fits(replace(concept, words=broken), sixteen)
    if wrong in ("layers", "width", "flat"):
        assert f"the base needs ({sixteen.layout.word_layers}, words, {words.shape[2]})" in str(caught.value)
