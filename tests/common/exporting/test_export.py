"""`export`: what is written, what is refused, and by which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from typer.testing import CliRunner

from mos_client.cli.main import app as client
from mos_common.attention import conditioned
from mos_common.base_model import load_base
from mos_common.concept_file import write_concept
from mos_common.conditioning import read_prompts
from mos_common.edlora import attached
from mos_common.errors import BaseModelError, RequestError, StateError
from mos_server.cli.main import app as server


@pytest.fixture
def concept_file(tiny, make_concept, tmp_path) -> Path:
    write_concept(make_concept(tiny, "<cat>", author="Alice", licence="CC0"), tmp_path / "concept.safetensors")
    return tmp_path / "concept.safetensors"


@pytest.fixture
def wordless_file(tiny, make_concept, tmp_path) -> Path:
    """An ordinary LoRA as a concept: prompts call it by its class word."""
    write_concept(make_concept(tiny, "<cat>", words=False), tmp_path / "lora-only.safetensors")
    return tmp_path / "lora-only.safetensors"


def test_a_diffusers_export_predicts_the_noise_of_base_and_adapter(fused, folder, quickly, tiny, tmp_path):
    """Loaded by diffusers alone, text features and noise are those of the base with the change."""
    quickly(folder, tiny, "diffusers", tmp_path / "exported")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "exported", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    latents, t = torch.randn(1, 4, 16, 16), torch.tensor(500)
    with torch.no_grad():
        text, _ = pipeline.encode_prompt("a tree at night", "cpu", 1, do_classifier_free_guidance=False)
        theirs = pipeline.unet(latents, t, encoder_hidden_states=text).sample
        with attached(tiny, fused.changes):
            conditioning = read_prompts(tiny, ["a tree at night"], {})
            with conditioned(tiny, conditioning) as unet:
                ours = unet.predict(latents, t)
        unchanged = tiny.unet(latents, t, encoder_hidden_states=text).sample
    torch.testing.assert_close(conditioning.features[:, 0], text)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - unchanged).norm() > 1e-2 * ours.norm()
    assert load_file(tmp_path / "exported" / "embeddings.safetensors").keys() == fused.vocabulary.keys()


def test_an_export_leaves_the_base_as_it_was_and_is_a_base_itself(folder, quickly, tiny, tmp_path):
    """An exported folder loads as a base model with a fingerprint of its own."""
    before = tiny.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].clone()
    quickly(folder, tiny, "diffusers", tmp_path / "exported")
    after = tiny.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    assert torch.equal(before, after)
    assert load_base(str(tmp_path / "exported"), device="cpu").fingerprint != tiny.fingerprint


def test_one_concept_is_a_folder_of_diffusers_too(concept_file, quickly, tiny, tmp_path):
    """Its layer-wise words lie in it as they do for a fused model."""
    quickly(concept_file, tiny, "diffusers", tmp_path / "exported")
    words = load_file(tmp_path / "exported" / "embeddings.safetensors")
    assert {token: tuple(found.shape) for token, found in words.items()} == {
        "<cat>": (tiny.layout.word_layers, 2, tiny.word_width)
    }


@pytest.mark.parametrize("taken", ["lora.safetensors", "lora.words"])
def test_a_lora_overwrites_neither_a_file_nor_its_words(folder, quickly, tiny, tmp_path, taken):
    (tmp_path / taken).mkdir()
    with pytest.raises(StateError, match=rf"{taken} already exists"):
        quickly(folder, tiny, "lora", tmp_path / "lora.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["fused", taken])


@pytest.mark.parametrize("kind", ["diffusers", "words"])
def test_a_folder_is_never_overwritten(folder, quickly, tiny, tmp_path, kind):
    (tmp_path / "exported").mkdir()
    with pytest.raises(StateError, match="already exists"):
        quickly(folder, tiny, kind, tmp_path / "exported")


def test_an_export_onto_another_base_is_refused(folder, quickly, sixteen, tmp_path):
    with pytest.raises(BaseModelError, match="was fused on tiny"):
        quickly(folder, sixteen, "diffusers", tmp_path / "exported")


@pytest.mark.parametrize(
    ("kind", "out", "more", "said"),
    [
        ("onnx", "x", {}, r"--format onnx is not known: choose one of diffusers"),
        ("lora", "lora.pt", {}, "this format is a single file, NAME.safetensors"),
        ("single-file", "model", {}, "this format is a single file, NAME.safetensors"),
        ("lora", "lora.safetensors", {"dtype": "int8"}, "--dtype int8 is not known: this format is written in float16"),
        ("diffusers", "exported", {"dtype": "float16"}, "it goes with --format lora or single-file"),
        ("diffusers", "exported", {"with_thumbnail": True}, "--thumbnail: a folder of diffusers has no place"),
        ("diffusers", "exported", {"fit": "text"}, "--words text: a folder of diffusers holds the layer-wise words"),
        ("diffusers", "exported", {"tool": "comfyui"}, "--for comfyui does not load a folder of diffusers"),
        ("lora", "lora.safetensors", {"fit": "magic"}, "--words magic is not known: choose one of mean, text"),
        ("lora", "lora.safetensors", {"tool": "paint"}, "--for paint is not known: choose one of comfyui, a1111"),
        ("lora", "a b.safetensors", {"tool": "a1111"}, "calls the file by its name, 'a b'"),
        ("words", "words.safetensors", {}, "the words of 2 concepts are as many files; give the name of a folder"),
        ("words", "words.pt", {}, "the words of 2 concepts are as many files"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(folder, quickly, tiny, tmp_path, kind, out, more, said):
    with pytest.raises(RequestError, match=said):
        quickly(folder, tiny, kind, tmp_path / out, **more)
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]


def test_a_concept_file_that_is_not_there_is_called_one(quickly, tiny, tmp_path):
    with pytest.raises(RequestError, match=r"no concept file at .*gone\.safetensors"):
        quickly(tmp_path / "gone.safetensors", tiny, "lora", tmp_path / "lora.safetensors")


def test_a_concept_without_words_exports_its_changes_and_says_how_to_call_it(wordless_file, quickly, tiny, tmp_path):
    (line,) = quickly(wordless_file, tiny, "lora", tmp_path / "lora.safetensors")
    assert line == f"{tmp_path / 'lora.safetensors'}: prompts call <cat> 'cat'"
    assert not (tmp_path / "lora.words").exists()
    with pytest.raises(RequestError, match="<cat> has no words of its own; prompts call it 'cat'"):
        quickly(wordless_file, tiny, "words", tmp_path / "words.safetensors")


@pytest.mark.parametrize("app", [client, server], ids=["mos-client", "mos-server"])
def test_both_commands_write_the_same_and_say_what_a_generic_loader_cannot_do(app, concept_file, tmp_path):
    out = tmp_path / "lora.safetensors"
    arguments = ["export", str(concept_file), "--format", "lora", "--words", "mean", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()
    assert first == str(out)
    assert second.startswith(f"{tmp_path / 'lora.words'}: the words") and "drawn less well" in second
    assert (tmp_path / "lora.words" / "cat.safetensors").is_file()


def test_what_ends_midway_leaves_nothing(folder, quickly, tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mos_common.exporting.canonical.save_file", full)
    with pytest.raises(StateError, match="the disk is full"):
        quickly(folder, tiny, "single-file", tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]
