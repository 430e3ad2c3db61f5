"""A fused model in other people's formats: their loaders predict the noise that ours does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from mos_client.importing.lora import pairs_of
from mos_client.importing.words import textual_inversion
from mos_common.attention import conditioned
from mos_common.base_model import base_path
from mos_common.conditioning import read_prompts
from mos_common.edlora import LowRank, attached
from mos_common.errors import BaseModelError, RequestError, StateError
from mos_common.fused_model import NamedConcept, read_fused
from mos_common.words import encode_prompts
from mos_server.cli.main import app
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.average import AverageSettings
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.models.export import export
from mos_server.models.publish import write_fused
from reference.pipelines import ours, pipeline_of, theirs


@pytest.fixture
def fused(tiny, make_concept):
    concepts = [
        NamedConcept("alice", make_concept(tiny, "<cat>", seed=1, author="Alice", licence="CC0")),
        NamedConcept("bob", make_concept(tiny, "<dog>", seed=2, rank=3)),
    ]
    return fuse(tiny, concepts, GradientSettings(contexts=("V",), ordinary=("",), steps=1, guidance=1.0))


@pytest.fixture
def mixed(make_concept, tmp_path):
    """Write a fused model in which one concept changes every adaptable layer, in ranks 1 to 3."""

    def folder(base) -> Path:
        g, everything = torch.Generator().manual_seed(5), {}
        for i, layer in enumerate(base.layout.layers):
            rank, size = 1 + i % 3, float(layer.module.weight.float().std())
            A, B = torch.randn(rank, layer.d_in, generator=g), 0.3 * size * torch.randn(layer.d_out, rank, generator=g)
            everything[layer.name] = LowRank(A, B, 2.0)
        cat = dataclasses.replace(make_concept(base, "<cat>", seed=1, licence="CC0"), pairs=everything)
        concepts = [NamedConcept("alice", cat), NamedConcept("bob", make_concept(base, "<dog>", seed=2, rank=3))]
        write_fused(fuse(base, concepts, AverageSettings()), tmp_path / "fused")
        return tmp_path / "fused"

    return folder


def test_a_diffusers_export_predicts_the_noise_of_base_and_adapter(fused, tiny, tmp_path):
    """Loaded by diffusers alone, text features and noise are those of the base with the change."""
    write_fused(fused, tmp_path / "fused")
    export(tmp_path / "fused", tiny, "diffusers", tmp_path / "exported")
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


def test_an_export_leaves_the_base_as_it_was_and_is_a_base_itself(fused, tiny, tmp_path):
    """An exported folder loads as a base model with a fingerprint of its own."""
    from mos_common.base_model import load_base

    before = tiny.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"].clone()
    write_fused(fused, tmp_path / "fused")
    export(tmp_path / "fused", tiny, "diffusers", tmp_path / "exported")
    after = tiny.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"]
    assert torch.equal(before, after)
    assert load_base(str(tmp_path / "exported"), device="cpu").fingerprint != tiny.fingerprint


def test_an_export_never_overwrites(fused, tiny, tmp_path):
    write_fused(fused, tmp_path / "fused")
    (tmp_path / "exported").mkdir()
    with pytest.raises(StateError, match="already exists"):
        export(tmp_path / "fused", tiny, "diffusers", tmp_path / "exported")


def test_an_export_onto_another_base_is_refused(fused, tiny, sixteen, tmp_path):
    write_fused(fused, tmp_path / "fused")
    with pytest.raises(BaseModelError, match="was fused on tiny"):
        export(tmp_path / "fused", sixteen, "diffusers", tmp_path / "exported")


def test_an_unknown_format_lists_the_known_ones(fused, tiny, tmp_path):
    with pytest.raises(RequestError, match=r"--format onnx is not known: choose one of diffusers"):
        export(tmp_path / "fused", tiny, "onnx", tmp_path / "exported")


@pytest.mark.parametrize("kind", ["tiny", "sixteen", "xl"])
def test_diffusers_predicts_the_noise_of_base_and_adapter_with_the_lora(
    kind, request, mixed, random_base_folder, tmp_path
):
    """All kinds of layers, of different ranks, and both text encoders are covered."""
    base, xl = request.getfixturevalue(kind), kind == "xl"
    export(mixed(base), base, "lora", tmp_path / "lora.safetensors", dtype="float32")
    changes = read_fused(tmp_path / "fused").changes
    assert changes.keys() == {layer.name for layer in base.layout.layers}
    assert len({pair.rank for pair in changes.values()}) > 2
    folder = base_path("tiny") if kind == "tiny" else random_base_folder(**({"xl": True} if xl else {}))
    pipeline = pipeline_of(folder, xl=xl)
    plain = theirs(pipeline)
    torch.testing.assert_close(ours(base, {}), plain, rtol=1e-4, atol=1e-4)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert float((theirs(pipeline) - plain).norm() / plain.norm()) > 0.1
    torch.testing.assert_close(ours(base, changes), theirs(pipeline), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["tiny", "sixteen", "xl"])
@pytest.mark.parametrize(("dtype", "exact"), [(None, 1e-3), ("float32", 1e-6)])
def test_the_importer_reads_the_same_changes_back(kind, request, mixed, tmp_path, dtype, exact):
    base = request.getfixturevalue(kind)
    export(mixed(base), base, "lora", tmp_path / "lora.safetensors", dtype)
    tensors, changes = load_file(tmp_path / "lora.safetensors"), read_fused(tmp_path / "fused").changes
    factors = {tensor.dtype for name, tensor in tensors.items() if name.endswith(".weight")}
    assert factors == {torch.float32 if dtype else torch.float16}
    back = pairs_of(tensors, {}, base)
    assert back.keys() == changes.keys()
    for name, pair in changes.items():
        assert float((back[name].change() - pair.change()).norm() / pair.change().norm()) < exact, name


def test_a_lora_of_one_rank_has_scale_one(tiny, make_concept, tmp_path):
    one = NamedConcept("", make_concept(tiny, rank=2))
    write_fused(fuse(tiny, [one], AverageSettings()), tmp_path / "fused")
    export(tmp_path / "fused", tiny, "lora", tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")} == {2.0}
    assert {len(tensor) for name, tensor in tensors.items() if name.endswith(".lora_down.weight")} == {2}


def test_a_lora_says_what_it_is(fused, tiny, tmp_path):
    write_fused(fused, tmp_path / "fused")
    export(tmp_path / "fused", tiny, "lora", tmp_path / "lora.safetensors")
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        told = file.metadata()
    assert told["modelspec.title"] == "Fused model of <alice/cat>, <bob/dog>"
    assert told["modelspec.license"] == "<alice/cat>: CC0; <bob/dog>: not given"
    assert told["modelspec.author"] == "<alice/cat>: Alice; <bob/dog>: not given"
    assert tiny.fingerprint in told["modelspec.description"]
    assert "drawn less well" in told["modelspec.description"]


def test_two_exports_are_equal_files(fused, tiny, tmp_path):
    write_fused(fused, tmp_path / "fused")
    for name in ("one", "other"):
        export(tmp_path / "fused", tiny, "lora", tmp_path / name / "lora.safetensors")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors"))
    assert [str(path) for path in files] == [
        "lora.safetensors",
        "lora.words/alice.cat.safetensors",
        "lora.words/bob.dog.safetensors",
    ]
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "other" / path).read_bytes()
    data = (tmp_path / "one" / "lora.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    assert list(json.loads(data[8:end])["__metadata__"]) == sorted(json.loads(data[8:end])["__metadata__"])


def test_diffusers_reads_a_name_as_the_mean_of_its_words_over_the_layers(fused, tiny, tmp_path):
    """Loaded by diffusers under its own token; compared with our encoder, given the mean."""
    write_fused(fused, tmp_path / "fused")
    export(tmp_path / "fused", tiny, "lora", tmp_path / "lora.safetensors", "float32")
    pipeline, prompt = pipeline_of(base_path("tiny")), "a photo of <alice/cat> and <bob/dog>, outside"
    for name in ("alice.cat", "bob.dog"):
        pipeline.load_textual_inversion(tmp_path / "lora.words" / f"{name}.safetensors", local_files_only=True)
    with torch.no_grad():
        text, _ = pipeline.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)
        means = {token: words.mean(dim=0, keepdim=True) for token, words in fused.vocabulary.items()}
        torch.testing.assert_close(encode_prompts(tiny, [prompt], means)[:, 0], text, rtol=1e-4, atol=1e-4)


def test_words_of_xl_lie_under_the_names_of_its_text_encoders(xl, mixed, random_base_folder, tmp_path):
    export(mixed(xl), xl, "lora", tmp_path / "lora.safetensors", "float32")
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


@pytest.mark.parametrize("taken", ["lora.safetensors", "lora.words"])
def test_a_lora_overwrites_neither_a_file_nor_its_words(fused, tiny, tmp_path, taken):
    write_fused(fused, tmp_path / "fused")
    (tmp_path / taken).mkdir()
    with pytest.raises(StateError, match=rf"{taken} already exists"):
        export(tmp_path / "fused", tiny, "lora", tmp_path / "lora.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["fused", taken])


@pytest.mark.parametrize(
    ("kind", "out", "dtype", "said"),
    [
        ("lora", "lora.pt", None, "this format is a single file, NAME.safetensors"),
        ("lora", "lora.safetensors", "int8", "--dtype int8 is not known: this format is written in float16 or float32"),
        ("diffusers", "exported", "float16", "it goes with --format lora or single-file"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(fused, tiny, tmp_path, kind, out, dtype, said):
    write_fused(fused, tmp_path / "fused")
    with pytest.raises(RequestError, match=said):
        export(tmp_path / "fused", tiny, kind, tmp_path / out, dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]


def test_the_command_says_what_a_generic_loader_cannot_do(fused, tmp_path):
    write_fused(fused, tmp_path / "fused")
    arguments = ["export", str(tmp_path / "fused"), "--format", "lora", "--out", str(tmp_path / "lora.safetensors")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first == str(tmp_path / "lora.safetensors")
    assert second.startswith(f"{tmp_path / 'lora.words'}: the words") and "drawn less well" in second


@pytest.mark.parametrize("kind", ["tiny", "sixteen"])
def test_diffusers_finds_every_weight_of_base_and_changes_in_the_single_file(
    kind, request, mixed, random_base_folder, tmp_path
):
    """To the bit, by diffusers' own reader of such files: UNet, VAE, text encoder."""
    base = request.getfixturevalue(kind)
    export(mixed(base), base, "single-file", tmp_path / "model.safetensors", "float32")
    config = base_path("tiny") if kind == "tiny" else random_base_folder()
    pipeline = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(config), local_files_only=True, dtype=torch.float32
    )
    with attached(base, read_fused(tmp_path / "fused").changes):
        for part in ("unet", "vae", "text_encoder"):
            found, expected = getattr(pipeline, part).state_dict(), getattr(base, part).state_dict()
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(found[name], tensor), f"{part}.{name}"
    assert (tmp_path / "model.words" / "alice.cat.safetensors").is_file()


def test_a_single_file_has_the_names_of_stable_diffusion_1(sixteen, mixed, tmp_path):
    """Names and shapes are those of v1-5-pruned.safetensors where counting easily goes wrong.

    Half precision is the default.
    """
    export(mixed(sixteen), sixteen, "single-file", tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    for name in (
        "model.diffusion_model.time_embed.2.bias",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.input_blocks.4.0.emb_layers.1.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight",
        "first_stage_model.decoder.mid.attn_1.proj_out.weight",
        "first_stage_model.post_quant_conv.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ):
        assert name in tensors
    assert tensors["first_stage_model.decoder.mid.attn_1.q.weight"].shape[2:] == (1, 1)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_two_single_files_are_equal(fused, tiny, tmp_path):
    write_fused(fused, tmp_path / "fused")
    for name in ("one", "other"):
        export(tmp_path / "fused", tiny, "single-file", tmp_path / name / "model.safetensors")
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["model.safetensors", "model.words"]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    with safe_open(tmp_path / "one" / "model.safetensors", "pt") as file:
        told = file.metadata()["modelspec.description"]
    assert "which predicts v_prediction" in told and "<alice/cat>: CC0" in told


def test_xl_is_no_single_file(xl, mixed, tmp_path):
    with pytest.raises(RequestError, match=r"is an XL model: choose --format diffusers or lora"):
        export(mixed(xl), xl, "single-file", tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]


def test_a_base_laid_out_like_neither_is_no_single_file(xl, tmp_path):
    """Stable Diffusion 2 has one text encoder, of another kind, and linear projections."""
    with pytest.raises(RequestError, match="has another layout"):
        export(tmp_path, dataclasses.replace(xl, text_encoder_2=None), "single-file", tmp_path / "model.safetensors")


def test_what_ends_midway_leaves_nothing(fused, tiny, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_fused(fused, tmp_path / "fused")
    monkeypatch.setattr("mos_server.models.export.save_file", full)
    with pytest.raises(StateError, match="the disk is full"):
        export(tmp_path / "fused", tiny, "single-file", tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["fused"]
