"""The parameters that each method tunes, and settings that reduce collisions of concepts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mos_client.pictures.examples import Encoded, Example
from mos_client.tuning.loop import Tuning
from mos_client.tuning.settings import Method
from mos_common.errors import RequestError
from mos_common.words import tokenise
from reference.small_tuning import CONFIG, examples, tuning_of, words_at_start


@pytest.mark.parametrize(
    ("method", "words", "layerwise", "pairs"),
    [
        (Method.ED_LORA, 2, True, "all"),
        (Method.LORA, 1, False, "all"),
        (Method.PLAIN_LORA, 0, False, "all"),
        (Method.CUSTOM_DIFFUSION, 1, False, "cross"),
        (Method.P_PLUS, 1, True, "none"),
        (Method.TEXTUAL_INVERSION, 1, False, "none"),
    ],
)
def test_what_each_method_tunes(base, method, words, layerwise, pairs):
    tuning = tuning_of(base, replace(CONFIG, method=method))
    before = [parameter.detach().clone() for parameter in tuning.parameters]
    list(tuning.steps())
    if words:
        count = len(base.layout.cross_attentions) if layerwise else 1
        assert tuning.words.shape == (count, words, base.token_table.shape[1])
        assert tuning.layerwise_words().shape[0] == len(base.layout.cross_attentions)
    else:
        assert tuning.words is None
    names = {layer.name for layer in base.layout.attention}
    cross = {name for name in names if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert tuning.pairs.keys() == {"all": names, "cross": cross, "none": set()}[pairs]
    assert all(not torch.equal(a, b) for a, b in zip(before, tuning.parameters, strict=True)), "all of it was tuned"


def test_layerwise_words_go_their_own_ways_and_a_single_one_is_the_same_everywhere(tiny):
    ed, single = (tuning_of(tiny, replace(CONFIG, method=method)) for method in (Method.ED_LORA, Method.LORA))
    for tuning in (ed, single):
        list(tuning.steps())
    words = ed.layerwise_words()
    assert len({tuple(row.tolist()) for row in words[:, 0]}) == len(words)
    assert torch.equal(single.layerwise_words(), single.words.detach().expand(len(words), -1, -1))


def test_plain_lora_writes_the_class_word_where_v_stands_and_encodes_a_text_once(tiny, monkeypatch):
    """With the text encoder frozen, nothing that it reads is tuned."""
    encoded = []
    encode = type(tiny.text_encoder).forward
    monkeypatch.setattr(
        type(tiny.text_encoder),
        "forward",
        lambda self, ids, **k: encoded.append(ids.tolist()) or encode(self, ids, **k),
    )
    tuning = tuning_of(tiny, replace(CONFIG, method=Method.PLAIN_LORA, learning_rate_text=0.0, steps=8))
    list(tuning.steps())
    texts = {tuple(row) for ids in encoded for row in ids}
    wanted = {
        tuple(tiny.tokenizer(t, padding="max_length", max_length=56).input_ids) for t in ("photo of a cat", "cat")
    }
    assert texts <= wanted
    assert len(encoded) <= 2
    assert not any(name.startswith("text_encoder") for name in tuning.pairs)


def test_frozen_directions_of_different_pictures_are_rows_of_one_orthogonal_matrix(base):
    """Every A is orthonormal, and rows of two concepts are equal or orthogonal.

    Other pictures change the choice of rows; another seed does not.
    """
    frozen = replace(CONFIG, frozen_directions=True, rank=4)
    others = [Example((Encoded(example.views[0].latent + 1),), example.captions) for example in examples(base)]
    one, again = tuning_of(base, frozen), tuning_of(base, replace(frozen, seed=5))
    two = Tuning(base, "cat", others, frozen)
    apart = 0
    for name, (A, _) in one.pairs.items():
        assert torch.equal(A, again.pairs[name][0])
        torch.testing.assert_close(A @ A.T, torch.eye(4), rtol=0, atol=1e-5)
        meeting = A @ two.pairs[name][0].T
        assert ((meeting.abs() < 1e-5) | ((meeting - 1).abs() < 1e-5)).all()
        apart += int((meeting.abs() < 1e-5).all())
    assert apart > len(one.pairs) / 3, "most share no direction at all"


def test_frozen_directions_stay_while_the_rest_is_tuned(base):
    tuning = tuning_of(base, replace(CONFIG, frozen_directions=True))
    before = {name: A.clone() for name, (A, _) in tuning.pairs.items()}
    list(tuning.steps())
    assert all(torch.equal(A, before[name]) for name, (A, _) in tuning.pairs.items())
    assert all(B.abs().sum() > 0 for _, B in tuning.pairs.values())
    assert len(tuning.parameters) == len(tuning.pairs) + 1


def test_more_words_stand_in_prompts_and_in_the_file(base):
    """Of three words, two start as noise and the last as the class word; prompts contain all."""
    tuning = tuning_of(base, replace(CONFIG, words=3))
    assert torch.equal(tuning.words[:, 2], words_at_start(base)[:, 1])
    assert len(tokenise(base, "photo of a <v>", tuning.vocabulary).words) == 3
    list(tuning.steps())
    assert tuning.layerwise_words().shape[1] == 3
    with pytest.raises(RequestError, match="words 2 with plain-lora"):
        replace(CONFIG, method=Method.PLAIN_LORA, words=2)
