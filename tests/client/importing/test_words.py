"""Textual inversions and the paper's checkpoints, compared with diffusers and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from mos_client.importing.import_files import import_files
from mos_client.importing.words import textual_inversion
from mos_common.concept import words_of
from mos_common.concept_file import read_concept
from mos_common.errors import ConceptError
from mos_common.words import encode_pooled, encode_prompts, tokenise


def vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) * 0.2


def imported(base, *files: Path, out: Path, **settings: object):
    import_files(files, concept="<cat>", class_word="cat", base=base, out=out, **settings)
    return read_concept(out)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["diffusers", "diffusers .bin", "A1111 .pt", "A1111 .safetensors"])
def test_a_textual_inversion_is_encoded_as_diffusers_encodes_it(sixteen, random_base_folder, tmp_path, kind, count):
    """With one vector or several, in every known format."""
    words = vectors(count, 24)
    file = tmp_path / ("ti.safetensors" if "safetensors" in kind or kind == "diffusers" else "ti.pt")
    if kind == "diffusers":
        save_file({"<x>": words}, file)
    elif kind == "diffusers .bin":
        torch.save({"<x>": words}, file)
    elif kind == "A1111 .pt":
        param = torch.nn.Parameter(words)
        torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": param}, "name": "x", "step": 9}, file)
    else:
        save_file({"emb_params": words}, file)
    pipeline = StableDiffusionPipeline.from_pretrained(
        random_base_folder(), safety_checker=None, requires_safety_checker=False
    )
    pipeline.load_textual_inversion(file, token="<x>")
    with torch.no_grad():
        expected = pipeline.encode_prompt("a <x> here", "cpu", 1, do_classifier_free_guidance=False)[0]
        concept = imported(sixteen, file, out=tmp_path / "cat.safetensors")
        encoded = encode_prompts(sixteen, ["a <cat> here"], {"<cat>": words_of(concept, sixteen)})
    assert concept.words[0].shape == (16, count, 24)
    for layer in range(16):
        torch.testing.assert_close(encoded[:, layer], expected, rtol=1e-2, atol=5e-3)  # of half precision


def test_one_vector_without_a_dimension_of_its_own_is_a_word(sixteen):
    (words,) = textual_inversion({"<x>": torch.ones(24)}, sixteen)
    assert words.shape == (16, 1, 24)


def test_a_textual_inversion_of_xl_has_a_vector_for_each_text_encoder(xl, random_base_folder, tmp_path):
    save_file({"clip_l": vectors(2, 24), "clip_g": vectors(2, 32, seed=1)}, tmp_path / "ti.safetensors")
    pipeline = StableDiffusionXLPipeline.from_pretrained(random_base_folder(xl=True), add_watermarker=False)
    content = load_file(tmp_path / "ti.safetensors")
    for name, number in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = getattr(pipeline, f"text_encoder{number}"), getattr(pipeline, f"tokenizer{number}")
        pipeline.load_textual_inversion(content[name], token="<x>", text_encoder=encoder, tokenizer=tokenizer)
    concept = imported(xl, tmp_path / "ti.safetensors", out=tmp_path / "cat.safetensors")
    assert [words.shape for words in concept.words] == [(11, 2, 24), (11, 2, 32)]
    vocabulary = {"<cat>": words_of(concept, xl)}
    with torch.no_grad():
        expected, _, pooled, _ = pipeline.encode_prompt("a <x> here", device="cpu", do_classifier_free_guidance=False)
        text = tokenise(xl, "a <cat> here", vocabulary)
        torch.testing.assert_close(
            encode_prompts(xl, ["a <cat> here"], vocabulary)[:, 4], expected, rtol=1e-2, atol=5e-3
        )
        torch.testing.assert_close(encode_pooled(xl, [text], vocabulary), pooled, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"emb_params": torch.ones(1, 768)}, "has width 768, .* has 24: it was made for another base"),
        ({"clip_l": torch.ones(1, 24), "clip_g": torch.ones(1, 32)}, "has width 24 and 32, .* has 24"),
    ],
)
def test_an_embedding_of_another_base_is_refused(sixteen, content, said):
    with pytest.raises(ConceptError, match=said):
        textual_inversion(content, sixteen)


@pytest.mark.parametrize(
    "content",
    [
        {"string_to_param": {}},
        {"string_to_param": [1]},
        {"emb_params": "x"},
        {"a.b": torch.ones(24)},
        {"a": {}, "b": 1},
    ],
)
def test_what_is_no_textual_inversion_is_none(sixteen, content):
    assert textual_inversion(content, sixteen) is None


def test_vectors_of_different_numbers_for_the_two_text_encoders_are_refused(xl, tmp_path):
    save_file({"clip_l": vectors(2, 24), "clip_g": vectors(3, 32)}, tmp_path / "ti.safetensors")
    with pytest.raises(ConceptError, match=r"embeddings\.1 has shape \(11, 3, 32\)"):
        imported(xl, tmp_path / "ti.safetensors", out=tmp_path / "cat.safetensors")


def test_a_lora_and_its_textual_inversion_make_one_concept(sixteen, tmp_path):
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{key}.lora_down.weight": torch.ones(2, 32), f"{key}.lora_up.weight": torch.ones(32, 2)},
        tmp_path / "a.safetensors",
    )
    save_file({"emb_params": vectors(1, 24)}, tmp_path / "b.safetensors")
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    concept = imported(sixteen, *files, out=tmp_path / "cat.safetensors")
    assert (len(concept.pairs), concept.words[0].shape) == (1, (16, 1, 24))
    with pytest.raises(ConceptError, match=r"has words of its own.*leave out --trigger"):
        imported(sixteen, *files, out=tmp_path / "cat.safetensors", trigger="sks")
    with pytest.raises(ConceptError, match=r"b\.safetensors is a second embedding"):
        imported(sixteen, files[1], files[1], out=tmp_path / "cat.safetensors")


def test_what_holds_neither_is_refused(sixteen, tmp_path):
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "a.pt")
    with pytest.raises(ConceptError, match=r"a\.pt has no known tensors"):
        imported(sixteen, tmp_path / "a.pt", out=tmp_path / "cat.safetensors")


def paper_checkpoint(base, rank: int = 4) -> tuple[dict, dict[str, torch.Tensor]]:
    """Write `edlora.pth` as the paper's code does; return up · down of every layer.

    LoRA on all linears of the text encoder's attention, and on linears and 1x1 convolutions of the
    UNet's transformers; two words with one embedding per cross-attention layer.
    """
    g = torch.Generator().manual_seed(2)
    params: dict = {"new_concept_embedding": {}, "text_encoder": {}, "unet": {}}
    products = {}
    for token, seed in (("<potter1>", 5), ("<potter2>", 6)):
        params["new_concept_embedding"][token] = vectors(len(base.layout.cross_attentions), base.word_width, seed)
    for layer in base.layout.layers:
        part, _, module = layer.name.partition(".")
        if not (".self_attn." in module or ".attentions." in module):
            continue
        down, up = torch.randn(rank, layer.d_in, generator=g), torch.randn(layer.d_out, rank, generator=g) * 0.03
        products[layer.name] = up @ down
        if isinstance(layer.module, torch.nn.Conv2d):
            down, up = down[:, :, None, None], up[:, :, None, None]
        params[part] |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
    return params, products


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_the_paper_s_checkpoint_changes_by_alpha_up_down_not_divided_by_the_rank(sixteen, tmp_path, alpha, nested):
    params, products = paper_checkpoint(sixteen)
    torch.save({"params": params} if nested else params, tmp_path / "edlora.pth")
    concept = imported(sixteen, tmp_path / "edlora.pth", out=tmp_path / "cat.safetensors", paper_alpha=alpha)
    assert concept.pairs.keys() == products.keys()
    for name, product in products.items():
        assert float((concept.pairs[name].change() - alpha * product).norm() / (alpha * product).norm()) < 2e-3, name
    (words,) = concept.words
    assert words.shape == (sixteen.layout.word_layers, 2, 24)
    for word, token in enumerate(("<potter1>", "<potter2>")):
        expected = params["new_concept_embedding"][token]
        torch.testing.assert_close(words[:, word].float(), expected, rtol=1e-3, atol=1e-4)


def test_the_paper_s_plain_lora_has_one_embedding_for_all_layers(sixteen, tmp_path):
    params, _ = paper_checkpoint(sixteen)
    params["new_concept_embedding"] = {"<potter>": vectors(1, 24)}
    torch.save({"params": params}, tmp_path / "lora.pth")
    (words,) = imported(sixteen, tmp_path / "lora.pth", out=tmp_path / "cat.safetensors").words
    torch.testing.assert_close(words.float(), vectors(1, 24).expand(16, 1, 24), rtol=1e-3, atol=1e-4)


def test_a_checkpoint_without_embeddings_is_called_by_its_trigger(sixteen, tmp_path):
    params, _ = paper_checkpoint(sixteen)
    torch.save({"params": params | {"new_concept_embedding": {}}}, tmp_path / "a.pth")
    concept = imported(sixteen, tmp_path / "a.pth", out=tmp_path / "cat.safetensors", trigger="sks")
    assert (concept.trigger, tuple(concept.words)) == ("sks", ())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"new_concept_embedding": {"<p>": torch.ones(7, 24)}}, r"<p> is \(7, 24\); .* has 16 cross-attention layers"),
        ({"new_concept_embedding": {"<p>": "x"}}, "<p> is str"),
        ({"new_concept_embedding": [1]}, "'new_concept_embedding' does not hold named tensors"),
        ({"unet": [1]}, "'unet' does not hold named tensors"),
        ({"unet": {"a": 1}}, "'unet' does not hold named tensors"),
        ({"unet": {"nowhere.lora_down.weight": torch.ones(1, 1)}}, r"unet\.nowhere, which is not a linear layer"),
        (
            {"text_encoder": {"text_model.encoder.layers.0.self_attn.q_proj.lora_up.weight": torch.ones(24, 1)}},
            "only 1 of its two factors",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(sixteen, tmp_path, changed, said):
    params, _ = paper_checkpoint(sixteen)
    torch.save({"params": params | changed}, tmp_path / "edlora.pth")
    with pytest.raises(ConceptError, match=said):
        imported(sixteen, tmp_path / "edlora.pth", out=tmp_path / "cat.safetensors")


def test_the_paper_s_checkpoint_is_for_one_text_encoder(xl, sixteen, tmp_path):
    params, _ = paper_checkpoint(sixteen)
    torch.save({"params": {"new_concept_embedding": params["new_concept_embedding"]}}, tmp_path / "a.pth")
    with pytest.raises(ConceptError, match="has two"):
        imported(xl, tmp_path / "a.pth", out=tmp_path / "cat.safetensors")
