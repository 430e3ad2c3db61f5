"""Bases laid out like Stable Diffusion XL: two text encoders, pooled texts, larger transformers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from mos_common.base_model import load_base
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached
from mos_common.layers import Group
from mos_common.words import encode_pooled, encode_prompts, tokenise

PROMPTS = ["cat", "a dog, and a cat", "", "?."]


@pytest.fixture(scope="module")
def pipeline(random_base_folder) -> Iterator[StableDiffusionXLPipeline]:
    """diffusers' own pipeline of the same folder: the other road."""
    loaded = StableDiffusionXLPipeline.from_pretrained(random_base_folder(xl=True), add_watermarker=False)
    loaded.set_progress_bar_config(disable=True)
    yield loaded


def test_each_transformer_has_one_embedding_however_many_cross_attentions_it_has(xl):
    """In execution order: 2 transformers of 1, 2 of 2; the middle, 1 of 2; then 3 of 2, 3 of 1."""
    assert xl.layout.word_layers == 11
    assert len(xl.layout.cross_attentions) == 2 * 1 + 2 * 2 + 2 + 3 * 2 + 3 * 1
    assert [cross.word_layer for cross in xl.layout.cross_attentions] == [
        0,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
        5,
        6,
        6,
        7,
        7,
        8,
        9,
        10,
    ]


def test_layers_of_both_text_encoders_may_be_changed(xl):
    names = [layer.name for layer in xl.layout.attention if layer.group is Group.TEXT]
    assert len(names) == 2 * 2 * 4
    assert {name.partition(".")[0] for name in names} == {"text_encoder", "text_encoder_2"}
    assert "text_encoder_2.text_projection" not in names
    assert len({layer.name for layer in xl.layout.layers}) == len(xl.layout.layers)


def test_prompts_are_encoded_as_diffusers_encodes_them(xl, pipeline):
    """Last but one layer of both encoders side by side, and the second's pooled text."""
    texts = [tokenise(xl, prompt, {}) for prompt in PROMPTS]
    with torch.no_grad():
        features, pooled = encode_prompts(xl, PROMPTS, {}), encode_pooled(xl, texts, {})
        expected, _, expected_pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    assert features.shape == (4, 11, 20, 24 + 32)
    for layer in range(11):
        torch.testing.assert_close(features[:, layer], expected)
    torch.testing.assert_close(pooled, expected_pooled)


def test_a_concept_s_word_stands_in_both_text_encoders(xl):
    """A word that is the token `cat` in both tables reads as `cat` does."""
    (cat,) = xl.tokenizer("cat", add_special_tokens=False).input_ids
    words = {"<c>": xl.token_rows([cat])[None]}
    assert words["<c>"].shape == (1, 1, 24 + 32)
    with torch.no_grad():
        torch.testing.assert_close(
            encode_prompts(xl, ["a <c> !"], words), encode_prompts(xl, ["a cat !"], {}), rtol=1e-4, atol=1e-5
        )
        pooled = [encode_pooled(xl, [tokenise(xl, prompt, words)], words) for prompt in ("a <c> !", "a cat !")]
    torch.testing.assert_close(*pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 24)])
def test_a_picture_is_the_one_that_diffusers_draws(xl, pipeline, guidance, height, width):
    """Two steps of diffusers' pipeline from the same noise, told the same picture size."""
    how = Drawing(steps=2, guidance=guidance, height=height, width=width, negative="dog")
    ours = draw(xl, ["a cat"], [5], how=how)
    noise = torch.randn((1, 4, height // 2, width // 2), generator=torch.Generator().manual_seed(5))
    theirs = pipeline(
        "a cat",
        negative_prompt="dog",
        latents=noise,
        num_inference_steps=2,
        guidance_scale=guidance,
        height=height,
        width=width,
        output_type="pt",
    ).images
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=1e-4, atol=1e-4)


def test_a_concept_changes_the_picture_and_leaves_the_base_alone(xl, make_concept):
    concept = make_concept(xl)
    assert [words.shape for words in concept.words] == [(11, 2, 24), (11, 2, 32)]
    how = Drawing(steps=1)
    before = draw(xl, ["a cat"], [1], how=how)
    with attached(xl, concept.pairs):
        changed = draw(xl, ["a <cat>"], [1], vocabulary={"<cat>": torch.cat(list(concept.words), dim=2)}, how=how)
    assert float((changed - before).abs().mean()) > 1e-2
    assert torch.equal(draw(xl, ["a cat"], [1], how=how), before)


def test_the_fingerprint_is_the_same_in_half_precision_and_names_the_second_text_encoder(
    xl, random_base_folder, tmp_path
):
    folder = random_base_folder(xl=True)
    StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float16).save_pretrained(tmp_path / "half")
    assert load_base(str(tmp_path / "half"), device="cpu").fingerprint == xl.fingerprint
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    file = other / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    weights["text_projection.weight"] = weights["text_projection.weight"] + 1
    save_file(weights, file, {"format": "pt"})
    assert load_base(str(other), device="cpu").fingerprint != xl.fingerprint
