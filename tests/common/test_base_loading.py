"""A base that is not complete, or whose parts do not belong together, is refused by name."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModelWithProjection

from mos_common.base_loading import judge_weights
from mos_common.base_model import fingerprint_of, load_base
from mos_common.errors import BaseModelError
from reference.miniatures import edit, miniature, text_encoder, tokenizer, write_miniature

WEIGHTS = {
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_miniature(tmp_path_factory.mktemp("whole"), "xl")


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def change_tensors(folder: Path, part: str, change: object) -> str:
    """Let `change` work on a part's tensors; return the name of one in the middle."""
    file = folder / part / WEIGHTS[part]
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    change(tensors, name)
    save_file(tensors, file, {"format": "pt"})
    return name


def refusal(folder: Path) -> str:
    with pytest.raises(BaseModelError) as refused:
        load_base(str(folder), device="cpu")
    said = str(refused.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_missing_tensor_refuses_the_base_by_name(copied, part):
    """The libraries fill in random numbers, other ones at each load."""
    name = change_tensors(copied, part, lambda tensors, name: tensors.pop(name))
    said = refusal(copied)
    assert f"its {part} misses {name.removeprefix('text_model.')}" in said.replace("text_model.", "")
    assert said.endswith("The base is incomplete or damaged: download it again")


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_tensor_that_nothing_reads_refuses_the_base(copied, part):
    def add(tensors: dict, _: str) -> None:
        tensors["ema.decay"] = torch.ones(3)

    change_tensors(copied, part, add)
    assert f"its {part} has tensors that no such part reads: ema.decay." in refusal(copied)


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_tensor_of_another_shape_refuses_the_base(copied, part):
    def widen(tensors: dict, name: str) -> None:
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    name = change_tensors(copied, part, widen)
    said = refusal(copied)
    assert f"its {part} has other shapes than its configuration says" in said
    assert name.removeprefix("text_model.") in said


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_refuses_the_base(copied, part, value):
    def spoil(tensors: dict, name: str) -> None:
        tensors[name].view(-1)[0] = value

    name = change_tensors(copied, part, spoil)
    said = refusal(copied)
    assert f"its {part} has values that are not finite in" in said
    assert name.removeprefix("text_model.") in said


def test_many_missing_tensors_are_counted(copied):
    def drop(tensors: dict, _: str) -> None:
        for name in [name for name in tensors if "down_blocks" in name]:
            del tensors[name]

    change_tensors(copied, "unet", drop)
    assert " more. The base is incomplete" in refusal(copied)


def test_names_that_a_release_of_transformers_does_not_know_ask_for_another_release(tiny):
    """What releases before 5.6 report of `tiny`: they know its names only behind a prefix."""
    names = [name for name, _ in tiny.text_encoder.named_parameters()]
    told = {"missing_keys": [f"text_model.{name}" for name in names], "unexpected_keys": names, "mismatched_keys": []}
    with pytest.raises(BaseModelError, match=r"does not know the names .* text_encoder.*install transformers 5\.6"):
        judge_weights("tiny", "text_encoder", tiny.text_encoder, told)


def test_what_earlier_releases_wrote_beside_the_weights_is_harmless(copied, whole):
    """The positions 0, 1, 2, ... and a projection that only other uses read."""

    def add(tensors: dict, _: str) -> None:
        tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]

    change_tensors(copied, "text_encoder", add)
    assert fingerprint_of(str(copied)) == fingerprint_of(str(whole))


def test_a_text_encoder_that_was_saved_with_its_projection_is_read_without_it(tmp_path):
    words = tokenizer()
    encoder = text_encoder(words, kind=CLIPTextModelWithProjection)
    folder = write_miniature(tmp_path / "base")
    encoder.save_pretrained(folder / "text_encoder")
    loaded = load_base(str(folder), device="cpu").text_encoder
    ids = torch.tensor([words("a cat").input_ids])
    torch.testing.assert_close(loaded(ids).last_hidden_state, encoder(ids).last_hidden_state)


@pytest.mark.parametrize(
    "how", [{"safe_serialization": False}, {"max_shard_size": "40KB"}], ids=["pickled", "in shards"]
)
def test_other_layouts_of_the_same_weights_are_the_same_base_and_say_nothing(tmp_path, caplog, capfd, how):
    miniature().save_pretrained(tmp_path / "plain")
    miniature().save_pretrained(tmp_path / "other", **how)
    capfd.readouterr()
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        other = fingerprint_of(str(tmp_path / "other"))
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")
    assert other == fingerprint_of(str(tmp_path / "plain"))


def test_the_verbosity_of_the_libraries_is_given_back(copied):
    from diffusers.utils import logging as of_diffusers

    before = of_diffusers.get_verbosity()
    (copied / "unet" / "config.json").write_text("{")
    assert "unet/config.json cannot be read" in refusal(copied)
    change_tensors(copied, "vae", lambda tensors, name: tensors.pop(name))
    assert of_diffusers.get_verbosity() == before


def test_an_added_token_needs_an_embedding(tmp_path):
    words = tokenizer()
    words.add_tokens(["<sks>"])
    folder = write_miniature(tmp_path / "without", tokenizer=words, text_encoder=text_encoder(tokenizer()))
    assert "its tokenizer has token 192, and its text_encoder has 192 embeddings" in refusal(folder)
    folder = write_miniature(tmp_path / "with", tokenizer=words, text_encoder=text_encoder(words))
    assert load_base(str(folder), device="cpu").tokenizer.get_vocab()["<sks>"] == 192


def test_xls_tokenizers_must_be_of_one_length_and_vocabulary(copied):
    edit(copied / "tokenizer_2" / "tokenizer_config.json", model_max_length=12)
    assert "its tokenizers cut texts to 20 and 12 tokens" in refusal(copied)


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "text_encoder_2/config.json"])
@pytest.mark.parametrize("text", ["[1]", "{", "\udcff"])
def test_a_configuration_that_cannot_be_read_is_named(copied, file, text):
    (copied / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert file in refusal(copied)
