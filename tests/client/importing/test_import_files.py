"""Import files: what is taken, reported and refused (folders, words, strength, kinds)."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from mos_client.importing.import_files import import_files
from mos_common.concept_file import read_concept, write_concept
from mos_common.errors import ConceptError, RequestError
from mos_server.admission import admit

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
K = "lora_" + LAYER.replace(".", "_")


def pair(name: str = K, size: float = 0.1, rank: int = 2, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(rank)
    factors = {"down": torch.randn(rank, 32, generator=g), "up": torch.randn(32, rank, generator=g)}
    return {f"{name}.lora_{half}.weight": size * factor for half, factor in factors.items()} | more


@pytest.fixture
def imported(sixteen, tmp_path):
    """Return a function that imports files into cat.safetensors: (concept, lines of the report)."""

    def run(*files, **settings: object):
        lines: list[str] = []
        import_files(
            [tmp_path / file for file in files],
            concept="<cat>",
            class_word="cat",
            base=sixteen,
            out=tmp_path / "cat.safetensors",
            report=lines.append,
            **settings,
        )
        return read_concept(tmp_path / "cat.safetensors"), "\n".join(lines)

    return run


def test_the_report_says_layers_strength_and_how_it_is_called(imported, sixteen, tmp_path):
    save_file(pair(), tmp_path / "a.safetensors")
    concept, said = imported("a.safetensors", trigger="ohwx")
    weight = sixteen.layout.by_name[LAYER].module.weight
    share = float(concept.pairs[LAYER].change().norm() / weight.norm())
    assert f"LoRA of 1 layers; changes a layer by {100 * share:.1f} % of its norm in the median" in said
    assert "stands for 'ohwx'" in said
    _, said = imported("a.safetensors", rank=1)
    sigma = torch.linalg.svdvals(pair()[f"{K}.lora_up.weight"] @ pair()[f"{K}.lora_down.weight"]).square()
    assert f"rank 1 keeps at least {100 * float(sigma[0] / sigma.sum()):.1f} % of every change" in said
    assert "class word 'cat'" in said


NOTHING = {
    "alpha 0": pair() | {f"{K}.alpha": torch.tensor(0.0)},
    "up is zero": pair() | {f"{K}.lora_up.weight": torch.zeros(32, 2)},
    "down is zero": pair() | {f"{K}.lora_down.weight": torch.zeros(2, 32)},
    "both are zero": pair(size=0.0),
    "too small for half precision": pair(size=1e-12),
    "alpha too small for half precision": pair() | {f"{K}.alpha": torch.tensor(1e-25)},
}


@pytest.mark.parametrize("kind", NOTHING)
def test_a_file_that_changes_nothing_is_refused(imported, tmp_path, kind):
    save_file(NOTHING[kind], tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match="has alpha 0" if kind == "alpha 0" else "would change nothing"):
        imported("a.safetensors")
    assert not (tmp_path / "cat.safetensors").exists()


def test_a_file_of_large_convolutions_alone_leaves_nothing(imported, tmp_path):
    factors = {"down": torch.ones(2, 16, 3, 3), "up": torch.ones(16, 2, 1, 1)}
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    save_file({f"{name}.lora_{half}.weight": factor for half, factor in factors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match="nothing is left"):
        imported("a.safetensors", without_convolutions=True)
    save_file(load_file(tmp_path / "a.safetensors") | pair(), tmp_path / "a.safetensors")
    concept, said = imported("a.safetensors", without_convolutions=True)
    left_out = 2.0**2 * 16 * 16 * 9
    share = left_out / (left_out + float(concept.pairs[LAYER].change().square().sum()))
    assert f"left out: 1 convolutions larger than 1x1, {100 * share:.1f} % of the whole change" in said


def test_layers_without_effect_are_counted(imported, tmp_path):
    other = K.replace("to_q", "to_k")
    save_file(pair() | pair(other, size=0.0), tmp_path / "a.safetensors")
    assert "LoRA of 2 layers, 1 of them without effect" in imported("a.safetensors")[1]


def test_what_a_round_would_refuse_is_said_at_import(imported, sixteen, tmp_path):
    save_file(pair(size=30.0), tmp_path / "a.safetensors")
    _, said = imported("a.safetensors")
    (line,) = [line for line in said.splitlines() if "a round will not admit it" in line]
    with pytest.raises(ConceptError) as refusal:
        admit((tmp_path / "cat.safetensors").read_bytes(), sixteen)
    assert line.partition("as it is: ")[2] in str(refusal.value)
    save_file({"emb_params": torch.full((1, 24), 1e3)}, tmp_path / "b.safetensors")
    assert "a word has norm" in imported("b.safetensors")[1]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_factors_and_alpha_of_every_precision_are_read(imported, tmp_path, dtype, name):
    held = {key: tensor.to(dtype) for key, tensor in (pair(size=1) | {f"{K}.alpha": torch.tensor(1.0)}).items()}
    save_file(held, tmp_path / name) if name == "a.safetensors" else torch.save({"state_dict": held}, tmp_path / name)
    up, down = (held[f"{K}.lora_{half}.weight"].float() for half in ("up", "down"))
    change = imported(name)[0].pairs[LAYER].change()
    assert float((change - 0.5 * up @ down).norm() / change.norm()) < 2e-3


@pytest.mark.parametrize("other", [f"{LAYER}.lora_A.weight", f"lycoris_{K.removeprefix('lora_unet_')}.alpha"])
def test_one_layer_in_two_spellings_is_a_question_with_both_named(imported, tmp_path, other):
    save_file(pair() | {other: torch.ones(2, 32) if "A" in other else torch.tensor(1.0)}, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match=r"both change unet\.mid_block.*, in two spellings") as refusal:
        imported("a.safetensors")
    assert other in str(refusal.value) and K in str(refusal.value)


def test_one_factor_twice_is_a_question_with_both_named(imported, tmp_path):
    save_file(pair() | {f"{K}.lora_A.weight": torch.ones(2, 32)}, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match=r"lora_A\.weight and .*lora_down\.weight are the same factor|same factor"):
        imported("a.safetensors")


COMFYUI = {
    "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q": LAYER,
    "middle_block.1.transformer_blocks.0.attn1.to_q": LAYER,
    "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q": LAYER,
    "lycoris_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": LAYER,
    "diffusion_model.time_embed.0": "unet.time_embedding.linear_1",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj": (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    ),
    "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "lora_te_encoder_layers_0_mlp_fc1": "text_encoder.text_model.encoder.layers.0.mlp.fc1",
}


@pytest.mark.parametrize("spelled", COMFYUI)
def test_the_spellings_of_comfyui_onetrainer_and_lycoris_are_known(imported, sixteen, tmp_path, spelled):
    layer = sixteen.layout.by_name[COMFYUI[spelled]]
    factors = {"lora_A": torch.full((1, layer.d_in), 0.1), "lora_B": torch.full((layer.d_out, 1), 0.1)}
    save_file({f"{spelled}.{half}.weight": factor for half, factor in factors.items()}, tmp_path / "a.safetensors")
    assert list(imported("a.safetensors")[0].pairs) == [COMFYUI[spelled]]


@pytest.mark.parametrize(
    "bundle",
    [
        {"bundle_emb.<dog>.clip_l": torch.ones(2, 24)},
        {"bundle_emb.dog.emb_params": torch.ones(2, 24)},
        {"bundle_emb.dog.string_to_param.*": torch.ones(2, 24)},
    ],
)
def test_words_beside_the_changes_make_one_concept(imported, tmp_path, bundle):
    """As OneTrainer, and A1111 and Forge, write them."""
    save_file(pair() | bundle, tmp_path / "a.safetensors")
    concept, said = imported("a.safetensors")
    assert (list(concept.pairs), concept.words[0].shape) == ([LAYER], (16, 2, 24))
    assert "by 2 words of its own" in said
    with pytest.raises(ConceptError, match="leave out --trigger"):
        imported("a.safetensors", trigger="dog")


def test_words_of_xl_beside_the_changes_are_for_both_text_encoders(xl, tmp_path):
    held = {"bundle_emb.x.clip_l": torch.ones(1, 24), "bundle_emb.x.clip_g": torch.ones(1, 32)}
    save_file(held, tmp_path / "a.safetensors")
    settings = {"concept": "<x>", "class_word": "x", "base": xl, "out": tmp_path / "x.safetensors"}
    concept = import_files([tmp_path / "a.safetensors"], **settings)
    assert [words.shape for words in concept.words] == [(11, 1, 24), (11, 1, 32)]
    held.pop("bundle_emb.x.clip_g")
    save_file(held, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match=r"width 24, .* has 24 and 32"):
        import_files([tmp_path / "a.safetensors"], **settings)


def test_several_words_in_one_file_are_a_question(imported, tmp_path):
    words = {f"bundle_emb.{name}.clip_l": torch.full((1, 24), size) for name, size in (("dog", 0.1), ("hat", 0.2))}
    save_file(pair() | words, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match=r"several words: dog, hat.*--words NAME"):
        imported("a.safetensors")
    concept, _ = imported("a.safetensors", words="hat")
    assert float(concept.words[0][0, 0, 0]) == pytest.approx(0.2, rel=1e-3)
    with pytest.raises(ConceptError, match="no words called 'cat'; it has: dog, hat"):
        imported("a.safetensors", words="cat")
    save_file(pair() | {"bundle_emb.dog.clip_l_out": torch.ones(1, 24)}, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match="replaces what the text encoder puts out"):
        imported("a.safetensors")
    torch.save({"<a>": torch.ones(24), "<b>": torch.ones(24)}, tmp_path / "ti.pt")
    with pytest.raises(ConceptError, match=r"several embeddings: <a>, <b>"):
        imported("ti.pt")


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "dog.safetensors"])
def test_a_folder_with_one_file_of_weights_is_read(imported, tmp_path, name):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "README.md").write_text("a LoRA")
    torch.save({"x": torch.ones(1)}, tmp_path / "lora" / "optimizer.bin")
    (save_file if name.endswith("safetensors") else torch.save)(pair(), tmp_path / "lora" / name)
    assert list(imported("lora")[0].pairs) == [LAYER]


def test_a_folder_that_leaves_a_question_asks_it(imported, tmp_path):
    (tmp_path / "lora" / "checkpoint-500").mkdir(parents=True)
    with pytest.raises(ConceptError, match="has no file of weights"):
        imported("lora")
    save_file(pair(), tmp_path / "lora" / "checkpoint-500" / "pytorch_lora_weights.safetensors")
    with pytest.raises(ConceptError, match="checkpoint-500 have: give one of them"):
        imported("lora")
    save_file(pair(), tmp_path / "lora" / "a.safetensors")
    save_file(pair(), tmp_path / "lora" / "b.safetensors")
    with pytest.raises(ConceptError, match=r"several candidates: a\.safetensors, b\.safetensors"):
        imported("lora")
    (tmp_path / "lora" / "model_index.json").write_text("{}")
    with pytest.raises(ConceptError, match="is a whole base model, not a LoRA: give it with --base"):
        imported("lora")


KINDS = {
    "whole checkpoint of Stable Diffusion 1.x": (
        "model.diffusion_model.input_blocks.0.0.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ),
    "whole checkpoint of Stable Diffusion 2.x": (
        "model.diffusion_model.input_blocks.0.0.weight",
        "cond_stage_model.model.ln_final.weight",
    ),
    "whole checkpoint of Stable Diffusion XL": (
        "model.diffusion_model.input_blocks.0.0.weight",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
    ),
    "whole checkpoint of a diffusion model": ("model.diffusion_model.input_blocks.0.0.weight",),
    "whole checkpoint of Flux": ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"),
    "ControlNet": ("control_model.input_blocks.0.0.weight",),
    "a ControlNet, not": (
        "controlnet_cond_embedding.conv_in.weight",
        "conv_in.weight",
        "down_blocks.0.resnets.0.x.weight",
    ),
    "Control-LoRA": ("lora_controlnet", "input_blocks.0.0.down"),
    "T2I-Adapter": ("adapter.body.0.resnets.0.block1.weight", "adapter.conv_in.weight"),
    "IP-Adapter": ("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"),
    "the VAE": ("first_stage_model.encoder.conv_in.weight", "first_stage_model.decoder.conv_out.weight"),
    "the VAE of": ("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.conv_in.weight", "post_quant_conv.weight"),
    "the UNet": ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    "a text encoder of": ("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"),
    "an image encoder": ("vision_model.embeddings.class_embedding",),
    "text encoder (T5)": ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    "motion module": ("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",),
    "upscaler": ("conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file_that_is_no_lora_is_called_what_it_is(imported, tmp_path, kind):
    save_file({name: torch.ones(4, 3, 3, 3) for name in KINDS[kind]}, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError) as refusal:
        imported("a.safetensors")
    assert kind in str(refusal.value)


def test_an_ip_adapter_in_a_pickle_is_called_so(imported, tmp_path):
    torch.save({"image_proj": {"a": torch.ones(2)}, "ip_adapter": {"b": torch.ones(2)}}, tmp_path / "ip.bin")
    with pytest.raises(ConceptError, match="is an IP-Adapter"):
        imported("ip.bin")


def test_a_concept_is_no_lora(imported, sixteen, tmp_path, make_concept):
    write_concept(make_concept(sixteen), tmp_path / "dog.safetensors")
    with pytest.raises(ConceptError, match="is a concept already: no import is needed"):
        imported("dog.safetensors")


def test_words_that_are_all_zero_are_refused(imported, tmp_path):
    save_file({"emb_params": torch.zeros(2, 24)}, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match="are all zero: they were not trained"):
        imported("a.safetensors")


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_no_number_is_refused(imported, tmp_path, alpha):
    save_file(pair(), tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match="expected a finite number"):
        imported("a.safetensors", paper_alpha=alpha)


def test_two_loras_are_no_concept(imported, tmp_path):
    save_file(pair(), tmp_path / "a.safetensors")
    save_file(pair(), tmp_path / "b.safetensors")
    with pytest.raises(ConceptError, match=r"b\.safetensors is a second LoRA"):
        imported("a.safetensors", "b.safetensors")


def test_a_rank_beyond_that_of_concept_files_is_refused(imported, tmp_path):
    save_file(pair(rank=300), tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match=r"of rank 300.*--rank 256"):
        imported("a.safetensors")


def test_a_file_of_another_size_says_what_it_is_for(imported, tmp_path):
    held = {f"{K}.lora_down.weight": torch.ones(2, 64), f"{K}.lora_up.weight": torch.ones(64, 2)}
    save_file(held, tmp_path / "a.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(ConceptError, match=r"the base needs \(2, 32\).*is for 'sdxl_base_v1-0'"):
        imported("a.safetensors")


def test_a_file_of_another_base_names_it(imported, tmp_path):
    save_file(pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match=r"made for, Stable Diffusion XL \(--base\)"):
        imported("a.safetensors")
    save_file(pair("transformer.single_transformer_blocks.0.attn.to_q"), tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match="Flux"):
        imported("a.safetensors")
