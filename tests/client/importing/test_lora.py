"""LoRA files of other tools as concepts: changes compared with diffusers and by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from mos_client.importing.import_files import import_files
from mos_client.importing.lora import pairs_of, read_adapter
from mos_common.concept_file import read_concept
from mos_common.edlora import LowRank
from mos_common.errors import ConceptError, RequestError
from reference.pipelines import ours, pipeline_of, theirs

# Stability's own numbers of the blocks of Stable Diffusion XL that have transformers.
XL_BLOCKS = {
    "down_blocks_1_attentions_0": "input_blocks_4_1",
    "down_blocks_1_attentions_1": "input_blocks_5_1",
    "down_blocks_2_attentions_0": "input_blocks_7_1",
    "down_blocks_2_attentions_1": "input_blocks_8_1",
    "mid_block_attentions_0": "middle_block_1",
    "up_blocks_0_attentions_0": "output_blocks_0_1",
    "up_blocks_0_attentions_1": "output_blocks_1_1",
    "up_blocks_0_attentions_2": "output_blocks_2_1",
    "up_blocks_1_attentions_0": "output_blocks_3_1",
    "up_blocks_1_attentions_1": "output_blocks_4_1",
    "up_blocks_1_attentions_2": "output_blocks_5_1",
}


def kohya_name(layer: str, *, stability: bool = False) -> str:
    """Return the name of a layer in kohya's scripts."""
    part, _, module = layer.partition(".")
    flat = module.replace(".", "_")
    if stability and part == "unet":
        for ours, theirs in XL_BLOCKS.items():
            flat = flat.replace(f"{ours}_", f"{theirs}_")
    return f"{part}_{flat}"


def kohya_file(
    base, path: Path, *, stability: bool = False, where: str = "", alike: bool = False
) -> dict[str, torch.Tensor]:
    """Write a kohya file for the transformers and text encoders of `base`; return ΔW by layer.

    Ranks and alphas are random, or 2 everywhere if `alike`.
    """
    g, two, tensors, changes = torch.Generator().manual_seed(0), len(base.text_encoders) == 2, {}, {}
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1" if two else "lora_te", "text_encoder_2": "lora_te2"}
    for layer in base.layout.layers:
        part = layer.name.partition(".")[0]
        text = part != "unet" and ".layers." in layer.name
        if not (text or ".attentions." in layer.name) or where not in layer.name:
            continue
        rank = 2 if alike else int(torch.randint(1, 4, (1,), generator=g))
        alpha = 2.0 if alike else float(torch.rand(1, generator=g)) * 3 + 0.5
        down, up = torch.randn(rank, layer.d_in, generator=g), torch.randn(layer.d_out, rank, generator=g) * 0.05
        changes[layer.name] = alpha / rank * up @ down
        if isinstance(layer.module, torch.nn.Conv2d):
            down, up = down[:, :, None, None], up[:, :, None, None]
        name = kohya_name(layer.name, stability=stability).replace(part, prefixes[part], 1)
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
    save_file(tensors, path)
    return changes


def imported(base, *files: Path, out: Path, **settings: object) -> Mapping[str, LowRank]:
    """Import a file and return the pairs in the concept file."""
    settings = {"concept": "<cat>", "class_word": "cat"} | settings
    written = import_files(files, base=base, out=out, **settings)
    read = read_concept(out)
    assert read.pairs.keys() == written.pairs.keys()
    assert read.base_fingerprint == base.fingerprint
    return read.pairs


def assert_changes(pairs: Mapping[str, LowRank], expected: Mapping[str, torch.Tensor]) -> None:
    assert pairs.keys() == expected.keys()
    for name, change in expected.items():
        assert float((pairs[name].change() - change).norm() / change.norm()) < 2e-3, name  # of half precision


def test_a_kohya_file_changes_every_layer_by_alpha_over_rank_up_down(sixteen, tmp_path):
    """Linear layers and 1x1 convolutions, text encoder and UNet, random ranks and alphas."""
    changes = kohya_file(sixteen, tmp_path / "lora.safetensors")
    assert any(isinstance(x.module, torch.nn.Conv2d) for x in sixteen.layout.layers if x.name in changes)
    assert_changes(imported(sixteen, tmp_path / "lora.safetensors", out=tmp_path / "cat.safetensors"), changes)


@pytest.mark.parametrize("stability", [False, True])
def test_a_kohya_file_of_xl_in_either_numbering_of_the_blocks(xl, tmp_path, stability):
    changes = kohya_file(xl, tmp_path / "lora.safetensors", stability=stability)
    assert {name.partition(".")[0] for name in changes} == {"unet", "text_encoder", "text_encoder_2"}
    assert_changes(imported(xl, tmp_path / "lora.safetensors", out=tmp_path / "cat.safetensors"), changes)


@pytest.mark.parametrize("kind", ["sixteen", "xl"])
def test_diffusers_predicts_the_same_noise_with_a_kohya_file(kind, request, random_base_folder, tmp_path):
    """With one alpha: diffusers 0.42 with peft 0.21 drops alphas that differ between layers."""
    base = request.getfixturevalue(kind)
    file = tmp_path / "lora.safetensors"
    kohya_file(base, file, stability=kind == "xl", alike=True)
    pipeline = pipeline_of(random_base_folder(**({"xl": True} if kind == "xl" else {})), xl=kind == "xl")
    plain = theirs(pipeline)
    torch.testing.assert_close(ours(base, {}), plain, rtol=1e-4, atol=1e-4)
    pipeline.load_lora_weights(tmp_path, weight_name=file.name)
    pairs = pairs_of(load_file(file), {}, base)
    assert float((theirs(pipeline) - plain).norm() / plain.norm()) > 0.05
    torch.testing.assert_close(ours(base, pairs), theirs(pipeline), rtol=1e-3, atol=1e-3)


def test_without_an_alpha_it_is_the_rank(sixteen, tmp_path):
    changes = kohya_file(sixteen, tmp_path / "with.safetensors", where=".attn2.to_k")
    tensors = {n: t for n, t in load_file(tmp_path / "with.safetensors").items() if not n.endswith(".alpha")}
    pairs = pairs_of(tensors, {}, sixteen)
    assert pairs.keys() == changes.keys()
    for name, pair in pairs.items():
        stem = f"lora_{kohya_name(name)}"
        expected = tensors[f"{stem}.lora_up.weight"] @ tensors[f"{stem}.lora_down.weight"]
        torch.testing.assert_close(pair.change(), expected)


def with_adapters(pipeline, **config: object) -> None:
    """Add adapters as diffusers' training scripts do, but with a random B instead of zero."""
    of_unet = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj"]
    pipeline.unet.add_adapter(LoraConfig(target_modules=of_unet, **config))
    plain = {name: value for name, value in config.items() if not name.endswith("_pattern")}  # of the UNet's layers
    pipeline.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "out_proj"], **plain))
    randomise(pipeline.unet, pipeline.text_encoder)


@torch.no_grad()
def randomise(*models: torch.nn.Module) -> None:
    for model in models:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 3, "lora_alpha": 3},
        {"r": 3, "lora_alpha": 5},
        {"r": 4, "lora_alpha": 2, "use_rslora": True},
        {"r": 2, "lora_alpha": 2, "rank_pattern": {"to_k": 5}, "alpha_pattern": {"to_k": 7}},
        {"r": 3, "lora_alpha": 6, "use_dora": True},
    ],
    ids=["plain", "alpha", "rank-stabilised", "patterns", "DoRA"],
)
def test_a_diffusers_file_predicts_the_noise_that_diffusers_predicts(sixteen, random_base_folder, tmp_path, config):
    """Saved by diffusers with its metadata; the reference is loaded by diffusers too."""
    made = pipeline_of(random_base_folder())
    with_adapters(made, **config)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(made.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(made.text_encoder),
        unet_lora_adapter_metadata=made.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=made.text_encoder.peft_config["default"].to_dict(),
    )
    other = pipeline_of(random_base_folder())
    plain = theirs(other)
    other.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(theirs(other), theirs(made), rtol=1e-4, atol=1e-4)
    rank = 64 if config.get("use_dora") else None
    file = tmp_path / "pytorch_lora_weights.safetensors"
    pairs = imported(sixteen, file, out=tmp_path / "cat.safetensors", rank=rank)
    ours_predicted, expected = ours(sixteen, pairs), theirs(other)
    assert float((expected - plain).norm() / plain.norm()) > 0.05
    assert float((ours_predicted - expected).norm() / (expected - plain).norm()) < 1e-2  # of half precision


def test_a_diffusers_file_of_xl_predicts_the_noise_that_diffusers_predicts(xl, random_base_folder, tmp_path):
    """With adapters on both text encoders; alphas differ by part and are only in the metadata."""
    made = pipeline_of(random_base_folder(xl=True), xl=True)
    text = ["q_proj", "k_proj", "v_proj", "out_proj"]
    made.unet.add_adapter(
        LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_out"])
    )
    made.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=1, target_modules=text))
    made.text_encoder_2.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=text))
    parts = {"unet": made.unet, "text_encoder": made.text_encoder, "text_encoder_2": made.text_encoder_2}
    randomise(*parts.values())
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        **{f"{part}_lora_layers": get_peft_model_state_dict(model) for part, model in parts.items()},
        **{f"{part}_lora_adapter_metadata": model.peft_config["default"].to_dict() for part, model in parts.items()},
    )
    other = pipeline_of(random_base_folder(xl=True), xl=True)
    plain = theirs(other)
    other.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    pairs = imported(xl, tmp_path / "pytorch_lora_weights.safetensors", out=tmp_path / "cat.safetensors")
    assert {name.partition(".")[0] for name in pairs} == set(parts)
    ours_predicted, expected = ours(xl, pairs), theirs(other)
    assert float((expected - plain).norm() / plain.norm()) > 0.05
    assert float((ours_predicted - expected).norm() / (expected - plain).norm()) < 1e-2  # of half precision


def test_a_folder_that_peft_saved_has_its_alpha_in_the_configuration_beside_it(sixteen, random_base_folder, tmp_path):
    """Without that configuration alpha is the rank, and a warning says so."""
    unet = pipeline_of(random_base_folder()).unet
    adapted = get_peft_model(unet, LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_v"]))
    randomise(adapted)
    adapted.save_pretrained(tmp_path / "peft")
    expected = {}
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_A"):
            ours_of = f"unet.{name.removeprefix('base_model.model.')}"
            expected[ours_of] = module.get_delta_weight("default").detach()
    assert len(expected) == 2 * 2 * 16
    for given in (tmp_path / "peft", tmp_path / "peft" / "adapter_model.safetensors"):
        assert_changes(imported(sixteen, given, out=tmp_path / "cat.safetensors"), expected)


def test_without_peft_s_configuration_the_guess_is_told(sixteen, tmp_path, caplog):
    name = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    with caplog.at_level(logging.WARNING):
        (pair,) = imported(sixteen, tmp_path / "adapter_model.safetensors", out=tmp_path / "c.safetensors").values()
    assert "alpha is assumed to equal the rank" in caplog.text
    assert float(pair.change()[0, 0]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "spelling",
    [
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.{}.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.{}.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.{}.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_linear_layer.{}.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_layer.{}.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_{}.default_0.weight",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_{}.weight",
    ],
)
def test_every_spelling_of_a_layer_that_tools_have_written_over_the_years(sixteen, spelling):
    down, up = ("A", "B") if "default" in spelling else ("down", "up")
    pairs = pairs_of({spelling.format(down): torch.ones(1, 32), spelling.format(up): torch.ones(32, 1)}, {}, sixteen)
    assert list(pairs) == ["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"]


def test_peft_s_name_of_a_text_encoder_s_layer_is_refused_where_there_are_two(sixteen, xl):
    name = "base_model.model.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {name.format("A"): torch.ones(1, 24), name.format("B"): torch.ones(24, 1)}
    assert list(pairs_of(tensors, {}, sixteen)) == ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"]
    with pytest.raises(ConceptError, match="q_proj"):
        pairs_of(tensors, {}, xl)


K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PAIR = {f"{K}.lora_down.weight": torch.ones(2, 32), f"{K}.lora_up.weight": torch.ones(32, 2)}
F = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
WIDE = {
    f"{CONV}.alpha": torch.tensor(1.0),
    f"{CONV}.lora_down.weight": torch.ones(2, 16, 3, 3),
    f"{CONV}.lora_up.weight": torch.ones(16, 2, 1, 1),
}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{K}.lora_down.weight": torch.ones(2, 32)}, r"attn1\.to_q has only 1 of its two factors"),
        ({f"{K}.alpha": torch.tensor(1.0)}, r"attn1\.to_q has only 0 of its two factors"),
        ({f"{K}.hada_w1_a": torch.ones(32, 2)}, rf"{K}\.hada_w1_a is LoHa.*--rank 16"),
        ({f"{K}.lokr_w1": torch.ones(2, 2)}, rf"{K}\.lokr_w1 is LoKr.*--rank 16"),
        ({**PAIR, f"{K}.dora_scale": torch.ones(32)}, rf"{K}\.dora_scale is DoRA.*--rank 16"),
        ({f"{K}.diff": torch.ones(32, 32)}, rf"{K}\.diff is a full-rank difference.*--rank 16"),
        ({f"{K}.oft_blocks": torch.ones(2, 2)}, "OFT, which cannot be imported"),
        ({f"{K}.weight": torch.ones(2), f"{K}.on_input": torch.ones(1)}, r"not a factor of an adapter|IA3"),
        ({**PAIR, f"{K}.diff_b": torch.ones(32)}, "a trained bias"),
        ({**PAIR, "lora_unet_mid_block_attentions_0_norm.w_norm": torch.ones(32)}, "a trained norm"),
        ({f"{K}.lora_down.weight": torch.ones(2, 32).int(), f"{K}.lora_up.weight": torch.ones(32, 2)}, "holds int32"),
        ({**PAIR, f"{K}.lora_B.bias": torch.ones(32)}, "a trained bias"),
        (WIDE, rf"{CONV}\.alpha changes a convolution larger than 1x1"),
        (
            {f"{K}.lora_down.weight": torch.ones(2, 32, 3, 3), f"{K}.lora_up.weight": torch.ones(32, 2, 1, 1)},
            "larger than 1x1",
        ),
        (
            {"lora_unet_nowhere.lora_down.weight": torch.ones(2, 2)},
            "lora_unet_nowhere, which is not a linear layer .*--base",
        ),
        ({"something": torch.ones(2)}, "something is not a factor of an adapter"),
        ({**PAIR, f"{K}.alpha": torch.ones(3)}, "expected one finite number"),
        ({**PAIR, f"{K}.alpha": torch.tensor(float("nan"))}, "expected one finite number"),
        ({f"{K}.lora_down.weight": torch.ones(2, 32), f"{K}.lora_up.weight": torch.ones(32, 3)}, "do not form a pair"),
    ],
)
def test_adapters_other_than_lora_of_linear_layers_are_refused_by_name(sixteen, tensors, said):
    with pytest.raises(ConceptError, match=said):
        pairs_of(tensors, {}, sixteen)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{K}.hada_w1_a": torch.ones(32, 2)}, r"attn1\.to_q has hada_w1_a alone.*LoHa needs hada_w1_a and"),
        ({f"{K}.lokr_w1": torch.ones(2, 2)}, r"attn1\.to_q has lokr_w1 alone.*LoKr needs"),
        ({**PAIR, f"{K}.hada_w1_a": torch.ones(32, 2)}, "factors of two kinds of adapter: LoRA, and hada_w1_a"),
        (
            {f"{F}.diff": torch.ones(32, 256)},
            r"of shape \(256, 32\) cannot have a full-rank difference of .*\(32, 256\)",
        ),
        (
            {f"{K}.lokr_w1": torch.ones(2, 2), f"{K}.lokr_w2": torch.ones(9, 16)},
            r"of shape \(32, 32\) cannot have LoKr",
        ),
        ({**PAIR, f"{K}.dora_scale": torch.ones(31)}, r"magnitude has shape \(31,\); expected 32 numbers"),
        ({**PAIR, f"{K}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "a Tucker core of shape"),
    ],
)
def test_changes_that_fit_no_layer_are_refused_at_any_rank(sixteen, tensors, said):
    with pytest.raises(ConceptError, match=said):
        read_adapter(tensors, {}, sixteen, rank=16)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"lora_adapter_metadata": json.dumps({"unet.use_dora": True, "unet.r": 2})}, "use_dora"),
        ({"lora_adapter_metadata": "{"}, "cannot be read"),
        ({"lora_adapter_metadata": "[1]"}, "cannot be read"),
        ({"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "many"})}, "lora_alpha='many'"),
        ({"adapter_config.json": json.dumps({"peft_type": "IA3"})}, "is of kind IA3"),
    ],
)
def test_what_is_written_about_a_lora_is_not_believed_blindly(sixteen, metadata, said):
    with pytest.raises(ConceptError, match=said):
        pairs_of(PAIR, metadata, sixteen)


def test_factors_of_another_shape_than_the_base_s_are_named(sixteen, tmp_path):
    save_file(
        {f"{K}.lora_down.weight": torch.ones(2, 30), f"{K}.lora_up.weight": torch.ones(32, 2)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(
        ConceptError, match=r"attn1\.to_q\.lora_A\.weight has shape \(2, 30\), the base needs \(2, 32\)"
    ):
        imported(sixteen, tmp_path / "a.safetensors", out=tmp_path / "cat.safetensors")
    assert not (tmp_path / "cat.safetensors").exists()


@pytest.mark.parametrize("half", [torch.inf, torch.nan])
def test_numbers_that_are_none_are_refused(sixteen, tmp_path, half):
    save_file({**PAIR, f"{K}.lora_up.weight": torch.full((32, 2), half)}, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match="NaN or infinity"):
        imported(sixteen, tmp_path / "a.safetensors", out=tmp_path / "cat.safetensors")


def test_a_lora_is_called_by_its_trigger_else_by_its_class_word(sixteen, tmp_path):
    save_file(PAIR, tmp_path / "a.safetensors")
    for trigger in ("sks", ""):
        imported(sixteen, tmp_path / "a.safetensors", out=tmp_path / "cat.safetensors", trigger=trigger)
        read = read_concept(tmp_path / "cat.safetensors")
        assert (read.trigger, read.class_word, tuple(read.words)) == (trigger, "cat", ())


@pytest.mark.parametrize("trigger", ["<dog>", "a <alice/dog>"])
def test_a_trigger_that_names_a_concept_is_refused(sixteen, tmp_path, trigger):
    save_file(PAIR, tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match="expected ordinary words"):
        imported(sixteen, tmp_path / "a.safetensors", out=tmp_path / "cat.safetensors", trigger=trigger)


@pytest.mark.parametrize("flag", ["author", "licence", "trigger", "class_word"])
def test_a_text_with_a_character_that_is_not_seen_is_refused_by_its_flag(sixteen, tmp_path, flag):
    save_file(PAIR, tmp_path / "a.safetensors")
    named = {"class_word": "--class"}.get(flag, f"--{flag}")
    with pytest.raises(RequestError, match=rf"{named} .*character 2 is U\+202E"):
        imported(sixteen, tmp_path / "a.safetensors", out=tmp_path / "cat.safetensors", **{flag: "a\u202eb"})


def test_a_lora_too_large_for_a_concept_file_is_refused_with_a_rank_that_fits(sixteen, tmp_path, monkeypatch, caplog):
    changes = kohya_file(sixteen, tmp_path / "a.safetensors")
    monkeypatch.setattr("mos_client.importing.import_files.MAX_BYTES", 60_000)
    with pytest.raises(ConceptError, match=r"of rank 3; .*import it with --rank 1 or lower"):
        imported(sixteen, tmp_path / "a.safetensors", out=tmp_path / "cat.safetensors")
    assert not (tmp_path / "cat.safetensors").exists()
    monkeypatch.setattr("mos_client.importing.import_files.MAX_BYTES", 10**6)
    with caplog.at_level(logging.INFO):
        pairs = imported(sixteen, tmp_path / "a.safetensors", out=tmp_path / "cat.safetensors", rank=1)
    assert {pair.rank for pair in pairs.values()} == {1}
    assert "rank 1 keeps at least" in caplog.text
    for name, change in changes.items():
        largest = float(torch.linalg.matrix_norm(change, ord=2))
        assert float(pairs[name].change().norm()) == pytest.approx(largest, rel=1e-2)
