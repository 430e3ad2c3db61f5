"""The words by which a LoRA is called: its own metadata, and what is asked when two disagree."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from mos_client.importing.import_files import import_files
from mos_client.importing.trigger import choose_trigger
from mos_common.concept_file import read_concept
from mos_common.errors import ConceptError

K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PAIR = {f"{K}.lora_down.weight": torch.full((2, 32), 0.1), f"{K}.lora_up.weight": torch.full((32, 2), 0.1)}


def tags(**folders: dict[str, int]) -> dict[str, str]:
    return {"ss_tag_frequency": json.dumps({name.replace("__", " "): counts for name, counts in folders.items()})}


@pytest.mark.parametrize(
    ("metadata", "trigger"),
    [
        ({"modelspec.trigger_phrase": "ohwx dog"}, "ohwx dog"),
        ({"modelspec.trigger_phrase": " ohwx dog, "}, "ohwx dog"),
        ({"modelspec.trigger_phrase": "zwx dog", **tags(**{"5_ohwx__dog": {"ohwx dog": 20}})}, "zwx dog"),
        (tags(**{"5_ohwx__dog": {"ohwx dog": 20}}), "ohwx dog"),
        (tags(**{"5_ohwx__dog": {"grass": 3, "ohwx dog": 20, "tree": 4}}), "ohwx dog"),
        (tags(**{"5_ohwx__dog": {"1girl": 20, "ohwx dog": 20}}), "ohwx dog"),
        (tags(**{"10_dogs": {"ohwx_dog": 20, "grass": 7}}), "ohwx_dog"),
        (tags(**{"3_ohwx__dog": {"a photo of ohwx dog on grass": 1, "ohwx dog asleep": 1}}), "ohwx dog"),
        (tags(**{"1_zwx": {"zwx": 1}}), "zwx"),
        (tags(**{"2_a": {"zwx": 9, "hat": 2}, "2_b": {"zwx": 5}}), "zwx"),
        (
            tags(**{"5_ohwx__dog": {"ohwx dog": 20}, "1_dog": {"dog": 90}})
            | {"ss_reg_dataset_dirs": json.dumps({"1_dog": {"img_count": 90}})},
            "ohwx dog",
        ),
        (
            tags(**{"2_a": {"zwx": 9, "hat": 9}}) | {"ss_dataset_dirs": json.dumps({"2_a": {"img_count": 9}})},
            None,
        ),
        (tags(**{"2_dog": {"a brown animal": 1, "on the grass": 1, "asleep": 1}}), ""),
        (
            tags(**{"2_dog": {"animal": 5, "grass": 3}}) | {"ss_dataset_dirs": json.dumps({"2_dog": {"img_count": 9}})},
            "",
        ),
        ({"ss_tag_frequency": "{"}, ""),
        ({"ss_tag_frequency": "[1]"}, ""),
        ({"ss_tag_frequency": json.dumps({"2_a": {"x": "many"}, "b": 3})}, ""),
        ({"modelspec.trigger_phrase": ""}, ""),
        ({"modelspec.title": "x"}, ""),
    ],
)
def test_a_file_s_own_trigger_is_found(metadata, trigger):
    """None: two words stand in every caption, and the file does not say which it is."""
    if trigger is None:
        with pytest.raises(ConceptError, match=r"'zwx' or 'hat' \(ss_tag_frequency\): choose with --trigger"):
            choose_trigger(metadata, "")
    else:
        assert choose_trigger(metadata, "")[0] == trigger


@pytest.mark.parametrize("given", ["ohwx dog", "OHWX Dog", "a photo of ohwx dog", "ohwx_dog"])
@pytest.mark.parametrize("metadata", [{"modelspec.trigger_phrase": "ohwx dog"}, tags(**{"5_x": {"ohwx dog": 20}})])
def test_a_trigger_that_holds_the_file_s_own_agrees_with_it(metadata, given):
    assert choose_trigger(metadata, given)[0] == given


@pytest.mark.parametrize("given", ["sks", "ohwx dogs", "dog"])
@pytest.mark.parametrize("metadata", [{"modelspec.trigger_phrase": "ohwx dog"}, tags(**{"5_x": {"ohwx dog": 20}})])
def test_a_trigger_beside_the_file_s_own_is_a_question_with_both_named(metadata, given):
    with pytest.raises(ConceptError, match=f"you call it '{given}', and the file itself says 'ohwx dog'"):
        choose_trigger(metadata, given)


@pytest.mark.parametrize("phrase", ["<dog>", "a\tb", "x" * 300])
def test_a_trigger_that_is_not_ordinary_words_is_a_question(phrase):
    with pytest.raises(ConceptError, match="is not ordinary words: give the file of that embedding too"):
        choose_trigger({"modelspec.trigger_phrase": phrase}, "")


def test_the_trigger_is_in_the_concept_and_said(sixteen, tmp_path, command, caplog):
    base = sixteen.name
    save_file(PAIR, tmp_path / "a.safetensors", {"modelspec.trigger_phrase": "ohwx dog"})
    called = ("import", "a.safetensors", "--concept", "<x>", "--class", "dog", "--base", base, "--out", "x.safetensors")
    caplog.set_level(logging.INFO)
    code, out, _ = command(*called)
    assert (code, read_concept(tmp_path / "x.safetensors").trigger) == (0, "ohwx dog")
    assert "stands for 'ohwx dog', from the file's modelspec.trigger_phrase" in caplog.text
    assert "x.safetensors: 1 layers, called 'ohwx dog'" in out
    code, _, error = command(*called, "--trigger", "sks")
    assert code == 5
    assert "'sks'" in error and "'ohwx dog'" in error and "--trigger-anyway" in error
    code, _, _ = command(*called, "--trigger", "sks", "--trigger-anyway")
    assert (code, read_concept(tmp_path / "x.safetensors").trigger) == (0, "sks")
    code, _, _ = command(*called, "--trigger-anyway")
    assert (code, read_concept(tmp_path / "x.safetensors").trigger) == (0, "")
    assert "its class word 'dog'" in caplog.text


def test_words_of_its_own_need_no_trigger(sixteen, tmp_path):
    save_file(
        {**PAIR, "bundle_emb.dog.clip_l": torch.ones(1, 24)},
        tmp_path / "a.safetensors",
        {"modelspec.trigger_phrase": "dog"},
    )
    concept = import_files(
        [tmp_path / "a.safetensors"], concept="<x>", class_word="dog", base=sixteen, out=tmp_path / "x.safetensors"
    )
    assert (concept.trigger, len(concept.words)) == ("", 1)
