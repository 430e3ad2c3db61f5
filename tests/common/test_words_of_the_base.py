"""A base with a word of its own, as DreamBooth makes them: it is drawn, and no concept takes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from mos_common.base_model import Base, load_base
from mos_common.concept import check_fits, check_name_is_free
from mos_common.errors import ConceptError, RequestError
from mos_common.words import encode_prompts


@pytest.fixture(scope="module")
def pipeline(random_base_folder: Callable[..., Path]) -> StableDiffusionPipeline:
    """The random model with <sks> and the two-vector word <cat-toy> added to its tokenizer."""
    made = StableDiffusionPipeline.from_pretrained(random_base_folder(), safety_checker=None)
    made.tokenizer.add_tokens(["<sks>", "<cat-toy>", "<cat-toy>_1"])
    made.text_encoder.resize_token_embeddings(len(made.tokenizer), mean_resizing=False)
    with torch.no_grad():
        made.text_encoder.get_input_embeddings().weight[-3:] = torch.randn(3, 24)
    return made


@pytest.fixture(scope="module")
def dreambooth(pipeline: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("dreambooth")
    pipeline.save_pretrained(folder)
    return load_base(str(folder), device="cpu")


@pytest.mark.parametrize("prompt", ["a <sks> cat", "<sks>"])
def test_a_word_of_the_base_s_own_is_read_as_diffusers_reads_it(pipeline, dreambooth, prompt):
    expected, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
    torch.testing.assert_close(encode_prompts(dreambooth, [prompt], {})[0, 0], expected[0])


def test_a_word_of_several_vectors_is_read_as_diffusers_reads_it(pipeline, dreambooth):
    """Its other vectors are words of their own, which diffusers puts after the first."""
    expected, _ = pipeline.encode_prompt("cat <cat-toy> cat", "cpu", 1, False)
    torch.testing.assert_close(encode_prompts(dreambooth, ["cat <cat-toy> cat"], {})[0, 0], expected[0])


@pytest.mark.parametrize(("tag", "word"), [("<skss>", "<sks>"), ("<Cat-toy>", "<cat-toy>")])
def test_what_is_nearly_a_word_of_the_base_s_own_is_an_error_that_offers_it(dreambooth, tag, word):
    with pytest.raises(RequestError, match=rf"unknown concept {tag} \(did you mean {word}\?\); known: none"):
        encode_prompts(dreambooth, [f"a {tag} cat"], {})


def test_a_concept_of_the_same_name_is_an_error(dreambooth, make_concept):
    concept = make_concept(dreambooth, "<sks>")
    with pytest.raises(ConceptError, match=r"<sks> is a word that .* knows itself.*another name \(--concept\)"):
        check_fits(concept, dreambooth)
    check_fits(replace(concept, name="<other>"), dreambooth)
    with pytest.raises(ConceptError, match="<cat-toy> is a word"):
        check_name_is_free("<cat-toy>", dreambooth)


def test_tuning_a_concept_of_the_same_name_ends_before_the_first_step(dreambooth, make_pictures, tmp_path):
    from mos_client.tuning.request import TuneRequest
    from mos_client.tuning.tune_folder import tune_folder

    request = TuneRequest(make_pictures(), "<sks>", "cat", base=dreambooth.name)
    with pytest.raises(ConceptError, match="<sks> is a word"):
        tune_folder(request, tmp_path / "sks.safetensors", work=tmp_path / "work", base=dreambooth)
    assert not (tmp_path / "sks.safetensors").exists()
