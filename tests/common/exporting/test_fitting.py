"""One embedding per word, fitted: closer to what the layer-wise words do than their mean."""

from __future__ import annotations

import pytest
import torch

from mos_common.attention import conditioned
from mos_common.conditioning import read_prompts
from mos_common.edlora import attached
from mos_common.exporting import fitting
from mos_common.exporting.fitting import Fit, fit_words, usual_fit
from mos_common.exporting.words import mean_words
from mos_common.prompts import RECORDED, SCORED, about
from mos_common.words import encode_prompts


@pytest.fixture
def concept(tiny, make_concept):
    """A concept whose words differ between the layers, as tuned ones do: less than from others."""
    made = make_concept(tiny, "<cat>", strength=0.1)
    (words,) = made.words
    made.words[0].copy_(words.mean(dim=0, keepdim=True) + 0.5 * words)
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer steps and contexts."""
    monkeypatch.setattr(fitting, "PREDICTION_STEPS", 12)
    monkeypatch.setattr(fitting, "DENOISING_STEPS", 2)
    monkeypatch.setattr(fitting, "TEXT_ITERATIONS", 5)
    monkeypatch.setattr(fitting, "RECORDED", RECORDED[:5])


def text_error(base, concept, words) -> float:
    """Squared distance of what keys and values make of the features, in contexts of no fit."""
    prompts = [about(context, "<cat>") for context in SCORED[:3]]
    with torch.no_grad(), attached(base, concept.pairs):
        wanted = encode_prompts(base, prompts, {"<cat>": concept.words[0]})
        found = encode_prompts(base, prompts, {"<cat>": words})
        return sum(
            float((linear(found[:, cross.word_layer]) - linear(wanted[:, cross.word_layer])).square().sum())
            / float(linear(wanted[:, cross.word_layer]).square().sum())
            for cross in base.layout.cross_attentions
            for linear in (cross.module.to_k, cross.module.to_v)
        )


def prediction_error(base, concept, words) -> float:
    """Squared distance of the UNet's predictions, in contexts and noise of no fit."""
    prompts = [about(context, "<cat>") for context in SCORED[:3]]
    noisy = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(99))
    predicted = []
    for vocabulary in ({"<cat>": concept.words[0]}, {"<cat>": words}):
        with torch.no_grad(), attached(base, concept.pairs):
            conditioning = read_prompts(base, prompts, vocabulary)
            with conditioned(base, conditioning) as unet:
                predicted.append(unet.predict(noisy, torch.tensor(900)))
    return float((predicted[0] - predicted[1]).square().mean())


def test_text_features_come_closer_than_those_of_the_mean(tiny, concept):
    mean, fitted = mean_words(concept.words[0]), fit_words(tiny, concept.pairs, "<cat>", concept.words[0], Fit.TEXT)
    assert text_error(tiny, concept, fitted) < text_error(tiny, concept, mean)


def test_predictions_come_closer_than_those_of_the_mean(tiny, concept):
    mean = mean_words(concept.words[0])
    fitted = fit_words(tiny, concept.pairs, "<cat>", concept.words[0], Fit.PREDICTIONS)
    assert prediction_error(tiny, concept, fitted) < 0.8 * prediction_error(tiny, concept, mean)


def test_a_fit_is_the_same_twice_and_changes_nothing_else(tiny, concept):
    before = tiny.unet.state_dict()["conv_in.weight"].clone()
    one, other = (fit_words(tiny, concept.pairs, "<cat>", concept.words[0], Fit.PREDICTIONS) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(tiny.unet.state_dict()["conv_in.weight"], before)
    assert not any(parameter.requires_grad for parameter in tiny.unet.parameters())
    assert not tiny.unet._forward_hooks


def test_words_that_are_the_same_in_all_layers_are_kept(tiny, concept):
    """There is nothing to fit: they are what the other tool needs."""
    same = concept.words[0].mean(dim=0, keepdim=True).repeat(len(concept.words[0]), 1, 1)
    fitted = fit_words(tiny, concept.pairs, "<cat>", same, Fit.TEXT)
    torch.testing.assert_close(fitted, same[:1], rtol=0, atol=1e-4)
    one = fit_words(tiny, concept.pairs, "<cat>", same[:1], Fit.PREDICTIONS)
    assert torch.equal(one, same[:1])


def test_xl_is_fitted_too(xl, make_concept):
    concept = make_concept(xl, "<cat>", strength=0.05)
    words = torch.cat(list(concept.words), dim=2)
    fitted = fit_words(xl, concept.pairs, "<cat>", words, Fit.PREDICTIONS)
    assert fitted.shape == (1, 2, xl.word_width)
    assert torch.isfinite(fitted).all()


def test_a_small_model_is_fitted_by_its_predictions(tiny, sixteen):
    assert {usual_fit(tiny), usual_fit(sixteen)} == {Fit.PREDICTIONS}
