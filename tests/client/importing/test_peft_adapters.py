"""Adapters that PEFT writes, beside what PEFT merges; and every field of its configuration."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from mos_client.importing.import_files import import_files
from mos_client.importing.lora import read_adapter
from mos_client.importing.peft_config import CANNOT_MATTER, HONOURED, LEAVES_THE_RESULT_ALONE, PeftConfig
from mos_client.importing.sources import read_sources
from mos_common.errors import ConceptError
from reference.pipelines import pipeline_of

TARGETS = ["to_q", "to_v", "proj_in", "ff.net.0.proj"]
CONFIGURATIONS = {
    "alpha": LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS),
    "a pattern that is a regular expression": LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=TARGETS,
        alpha_pattern={r"mid_block.*attn1.to_q": 16, r"down_blocks\.\d+\.attentions\.0\..*to_v": 7},
        rank_pattern={r"^up_blocks\.[12].*attn2\.to_q": 5},
    ),
    "patterns that overlap: the first counts": LoraConfig(
        r=2, lora_alpha=4, target_modules=TARGETS, alpha_pattern={"attn1.to_q": 1, "to_q": 9}
    ),
    "rank-stabilised": LoraConfig(r=4, lora_alpha=2, target_modules=TARGETS, use_rslora=True),
    "DoRA": LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, use_dora=True),
    "a regular expression of targets": LoraConfig(r=2, lora_alpha=4, target_modules=r".*attn[12]\.to_[qv]"),
    "numbered layers": LoraConfig(r=2, target_modules=["to_q"], layers_to_transform=[0], layers_pattern="attentions"),
    "orthogonal start": LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS[:2], init_lora_weights="orthogonal"),
    "LoHa": LoHaConfig(r=3, alpha=5, target_modules=TARGETS, alpha_pattern={r"mid_block.*to_q": 2}),
    "LoKr": LoKrConfig(r=2, alpha=5, target_modules=TARGETS, decompose_both=True, decompose_factor=4),
    "LoKr, whole": LoKrConfig(r=64, alpha=5, target_modules=TARGETS),
}


@torch.no_grad()
def saved(folder, config, to) -> dict[str, torch.Tensor]:
    """Let PEFT write an adapter of a UNet; return the change that PEFT merges, by our names."""
    base = pipeline_of(folder).unet
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = get_peft_model(base, config)
    g = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=g)
            parameter.copy_(parameter * (1 + 0.2 * noise) if "magnitude" in name else 0.2 * noise)
    model.save_pretrained(to)
    loaded = PeftModel.from_pretrained(pipeline_of(folder).unet, to).merge_and_unload().state_dict()
    return {
        f"unet.{name.removesuffix('.weight')}": (tensor - before[name]).flatten(1)
        for name, tensor in loaded.items()
        if not torch.equal(tensor, before[name])
    }


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_the_change_is_the_one_that_peft_merges(sixteen, random_base_folder, tmp_path, kind):
    expected = saved(random_base_folder(), CONFIGURATIONS[kind], tmp_path / "peft")
    plain = isinstance(CONFIGURATIONS[kind], LoraConfig) and not CONFIGURATIONS[kind].use_dora
    (source,) = read_sources(tmp_path / "peft")
    read = read_adapter(source.tensors, source.metadata, sixteen, rank=None if plain else 64)
    assert read.pairs.keys() == expected.keys()
    for name, change in expected.items():
        assert float((read.pairs[name].change() - change).norm() / change.norm()) < 1e-4, name


def defaults_of(config: type) -> dict[str, object]:
    written = config().to_dict()
    return json.loads(
        json.dumps(written, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    )


@pytest.mark.parametrize("config", [LoraConfig, LoHaConfig, LoKrConfig])
def test_every_field_of_peft_s_configuration_is_on_one_list(config):
    """A release of PEFT with another field fails here: it belongs on one of the three."""
    lists = (HONOURED, CANNOT_MATTER, frozenset(LEAVES_THE_RESULT_ALONE))
    for field in dataclasses.fields(config):
        assert sum(field.name in known for known in lists) == 1, field.name
    PeftConfig.checked(defaults_of(config) | {"peft_type": config().peft_type.value})


REFUSED = {
    "bias": "lora_only",
    "lora_bias": True,
    "modules_to_save": ["conv_in"],
    "init_lora_weights": "pissa",
    "layer_replication": [[0, 4], [2, 5]],
    "target_parameters": ["experts.up"],
    "trainable_token_indices": [3],
    "megatron_config": {"a": 1},
    "use_qalora": True,
    "alora_invocation_tokens": [1],
    "velora_config": {"a": 1},
    "monteclora_config": {"a": 1},
    "use_bdlora": {"a": 1},
    "arrow_config": {"a": 1},
    "kasa_config": {"a": 1},
    "ensure_weight_tying": True,
}


def test_every_field_that_may_refuse_a_file_is_tried():
    assert REFUSED.keys() == LEAVES_THE_RESULT_ALONE.keys()


K = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def pair(prefix: str = "base_model.model.", rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{prefix}{K}.lora_A.weight": torch.ones(rank, 32), f"{prefix}{K}.lora_B.weight": torch.ones(32, rank)}


@pytest.mark.parametrize("where", ["beside the file", "in diffusers' metadata", "in the metadata of one model"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        *REFUSED.items(),
        *(("init_lora_weights", way) for way in ("olora", "corda", "loftq", "pissa_niter_4", "lora_ga", "mica")),
        ("a_field_of_tomorrow", 3),
        ("peft_type", "OFT"),
    ],
)
def test_what_changes_the_result_refuses_the_file_by_name(sixteen, field, value, where):
    config = {"r": 2, "lora_alpha": 4, field: value}
    metadata = {
        "beside the file": {"adapter_config.json": json.dumps(config)},
        "in diffusers' metadata": {
            "lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in config.items()})
        },
        "in the metadata of one model": {"lora_adapter_metadata": json.dumps(config)},
    }[where]
    with pytest.raises(ConceptError, match="OFT" if field == "peft_type" else field):
        read_adapter(pair("unet."), metadata, sixteen)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 4, "lora_alpha": 4}, "has factors of rank 2, and the file's configuration says 4"),
        ({"r": 2, "target_modules": ["to_k"]}, "puts no adapter on"),
        ({"r": 2, "target_modules": ["to_q"], "exclude_modules": r"mid_block\..*"}, "puts no adapter on"),
        ({"r": 2, "target_modules": ["to_q"], "layers_to_transform": [3]}, "puts no adapter on"),
        ({"r": 2, "alpha_pattern": {"(": 2}}, "no regular expression"),
        ({"r": 2, "target_modules": "("}, "no regular expression"),
        ({"r": 2, "lora_alpha": float("nan")}, "finite number"),
        (
            {"r": 2, "rank_pattern": {"mid_block.*": None}},
            r"rank_pattern\.mid_block\.\*=None: Input should be a valid int",
        ),
        ({"r": 2, "alpha_pattern": {"mid_block.*": [1]}}, r"alpha_pattern\.mid_block\.\*=\[1\]"),
        ({"r": 2, "alpha_pattern": ["mid_block.*"]}, "alpha_pattern="),
        ({"r": 2, "rank_pattern": {str(n): "x" for n in range(20_001)}}, "20,001 entries of rank_pattern"),
        ({"r": 2, "target_modules": [1] * 300_000}, "300,000 entries of target_modules"),  # 334 MB of errors
        ({"r": 2.5}, r"has r=2\.5"),
        ({"r": 2, "target_modules": 7}, "target_modules"),
        ({"r": 2, "layers_to_transform": {"3": 1}}, "layers_to_transform"),
        ({"r": 2, "target_modules": ["to_q"], "layers_to_transform": [0], "layers_pattern": 3}, "layers_pattern"),
        ({"r": 2, "use_dora": True}, "has no magnitude, and the file's configuration says use_dora=True"),
    ],
)
def test_a_configuration_of_another_adapter_is_noticed(sixteen, config, said):
    with pytest.raises(ConceptError, match=said):
        read_adapter(pair(), {"adapter_config.json": json.dumps(config)}, sixteen)


def test_an_alpha_in_the_file_and_another_in_the_configuration_are_a_question(sixteen):
    name = "lora_unet_" + K.replace(".", "_")
    tensors = {f"{name}.lora_down.weight": torch.ones(2, 32), f"{name}.lora_up.weight": torch.ones(32, 2)}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4})}
    assert read_adapter(tensors | {f"{name}.alpha": torch.tensor(4.0)}, metadata, sixteen).pairs[f"unet.{K}"].alpha == 4
    with pytest.raises(ConceptError, match="has alpha 1, and the file's configuration says 4"):
        read_adapter(tensors | {f"{name}.alpha": torch.tensor(1.0)}, metadata, sixteen)


def test_the_metadata_of_a_single_model_has_its_alpha(sixteen, random_base_folder, tmp_path):
    """diffusers' `unet.save_lora_adapter` writes its fields without the part's name."""
    unet = pipeline_of(random_base_folder()).unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q"]))
    unet.save_lora_adapter(tmp_path, adapter_name="default")
    (source,) = read_sources(tmp_path)
    pairs = read_adapter(source.tensors, source.metadata, sixteen).pairs
    assert {found.scale for found in pairs.values()} == {3.0}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks transformers
def test_a_folder_with_an_adapter_for_each_part_is_one_lora(xl, random_base_folder, tmp_path):
    """Both text encoders of XL have modules of the same names: the folder says which is meant."""
    pipeline = pipeline_of(random_base_folder(xl=True), xl=True)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        targets = ["to_q"] if part == "unet" else ["q_proj"]
        model = get_peft_model(getattr(pipeline, part), LoraConfig(r=2, lora_alpha=6, target_modules=targets))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
        model.save_pretrained(tmp_path / "lora" / part)
    concept = import_files(
        [tmp_path / "lora"], concept="<cat>", class_word="cat", base=xl, out=tmp_path / "cat.safetensors"
    )
    assert {name.partition(".")[0] for name in concept.pairs} == {"unet", "text_encoder", "text_encoder_2"}
    assert {found.scale for found in concept.pairs.values()} == {3.0}
    save_file({"x": torch.ones(1)}, tmp_path / "lora" / "other.safetensors")
    with pytest.raises(ConceptError, match=r"several candidates: other\.safetensors, unet"):
        read_sources(tmp_path / "lora")
