"""Words as textual inversions: diffusers reads a name as the embeddings that were exported."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mos_client.importing.words import textual_inversion
from mos_common.base_model import base_path
from mos_common.concept_file import write_concept
from mos_common.fused_model import read_fused
from mos_common.words import encode_prompts
from reference.pipelines import pipeline_of


def test_diffusers_reads_a_name_as_the_mean_of_its_words_over_the_layers(fused, folder, quickly, tiny, tmp_path):
    """Loaded by diffusers under its own token; compared with our encoder, given the mean."""
    quickly(folder, tiny, "lora", tmp_path / "lora.safetensors", "float32")
    pipeline, prompt = pipeline_of(base_path("tiny")), "a photo of <alice/cat> and <bob/dog>, outside"
    for name in ("alice.cat", "bob.dog"):
        pipeline.load_textual_inversion(tmp_path / "lora.words" / f"{name}.safetensors", local_files_only=True)
    with torch.no_grad():
        text, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        means = {token: words.mean(dim=0, keepdim=True) for token, words in fused.vocabulary.items()}
        torch.testing.assert_close(encode_prompts(tiny, [prompt], means)[:, 0], text, rtol=1e-4, atol=1e-4)


def test_words_of_xl_lie_under_the_names_of_its_text_encoders(xl, mixed, quickly, random_base_folder, tmp_path):
    quickly(mixed(xl), xl, "lora", tmp_path / "lora.safetensors", "float32")
    file = tmp_path / "lora.words" / "alice.cat.safetensors"
    mean = read_fused(tmp_path / "fused").vocabulary["<alice/cat>"].mean(dim=0)
    found = load_file(file)
    torch.testing.assert_close(torch.cat([found["clip_l"], found["clip_g"]], dim=1), mean)
    back = textual_inversion(found, xl)
    torch.testing.assert_close(torch.cat([words[0] for words in back], dim=1), mean)
    pipeline = pipeline_of(random_base_folder(xl=True), xl=True)
    for key, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        pipeline.load_textual_inversion(found[key], token="<alice/cat>", text_encoder=encoder, tokenizer=tokenizer)
        first = tokenizer.convert_tokens_to_ids("<alice/cat>")
        torch.testing.assert_close(encoder.get_input_embeddings().weight[first].detach(), found[key][0])


def test_words_alone_are_a_folder_or_for_one_concept_a_file(folder, make_concept, quickly, tiny, tmp_path):
    quickly(folder, tiny, "words", tmp_path / "words")
    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == [
        "alice.cat.safetensors",
        "bob.dog.safetensors",
    ]
    write_concept(make_concept(tiny, "<cat>"), tmp_path / "concept.safetensors")
    quickly(tmp_path / "concept.safetensors", tiny, "words", tmp_path / "mine.safetensors")
    assert list(load_file(tmp_path / "mine.safetensors")) == ["<cat>"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_words_have_the_number_format_that_was_asked_for(folder, quickly, tiny, tmp_path, dtype):
    quickly(folder, tiny, "words", tmp_path / "words", dtype)
    (found,) = load_file(tmp_path / "words" / "alice.cat.safetensors").values()
    assert found.dtype is getattr(torch, dtype)
