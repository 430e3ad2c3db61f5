"""Each key of each configuration is followed, or cannot matter, or refuses the base by name."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import diffusers
import pytest
from transformers import CLIPTextConfig

from mos_common.base_configuration import ALLOWED, defaults_of, judge_configuration
from mos_common.base_model import load_base
from mos_common.errors import BaseModelError
from mos_common.fingerprint_keys import KEYS
from mos_common.samplers import KNOWN
from reference.miniatures import NOISE, edit, unet, vae, write_miniature, xl_unet


@pytest.fixture
def base(tmp_path) -> Path:
    return write_miniature(tmp_path / "base")


def refusal(folder: Path) -> str:
    with pytest.raises(BaseModelError) as refused:
        load_base(str(folder), device="cpu")
    said = str(refused.value)
    assert "\n" not in said
    return said


def parameters(kind: type) -> set[str]:
    return inspect.signature(kind.__init__).parameters.keys() - {"self", "kwargs"}


def test_every_key_that_the_installed_libraries_know_is_listed():
    """A release with another key fails here: list it, and limit its values if need be."""
    pipelines = parameters(diffusers.StableDiffusionPipeline) | parameters(diffusers.StableDiffusionXLPipeline)
    assert pipelines <= KEYS["model_index"].keys()
    assert parameters(diffusers.UNet2DConditionModel) <= KEYS["unet"].keys()
    assert parameters(diffusers.AutoencoderKL) <= KEYS["vae"].keys()
    assert CLIPTextConfig().to_dict().keys() <= KEYS["text_encoder"].keys()
    for scheduler in KNOWN:
        assert parameters(getattr(diffusers, scheduler)) <= KEYS["scheduler"].keys(), scheduler


def test_every_key_that_a_saved_base_has_is_listed(base, tmp_path):
    """The files themselves, in the spelling of the installed releases; tokenizers have no list."""
    for folder in (base, write_miniature(tmp_path / "xl", "xl")):
        for file in folder.rglob("*config.json"):
            part = file.parent.name
            assert json.loads(file.read_text()).keys() <= KEYS[part].keys(), file


def test_the_defaults_of_the_libraries_are_allowed():
    kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    for part, kind in kinds.items():
        judge_configuration("a base", part, defaults_of(kind))
    for scheduler in KNOWN:
        judge_configuration("a base", "scheduler", defaults_of(getattr(diffusers, scheduler)))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "class_embed_type", "timestep"),
        ("unet/config.json", "num_class_embeds", 10),
        ("unet/config.json", "class_embeddings_concat", True),
        ("unet/config.json", "time_cond_proj_dim", 256),
        ("unet/config.json", "encoder_hid_dim", 24),
        ("unet/config.json", "encoder_hid_dim_type", "ip_image_proj"),
        ("unet/config.json", "addition_embed_type", "text"),
        ("unet/config.json", "addition_embed_type", "text_time"),
        ("unet/config.json", "only_cross_attention", [True, False]),
        ("unet/config.json", "only_cross_attention", True),
        ("unet/config.json", "mid_block_only_cross_attention", True),
        ("unet/config.json", "dual_cross_attention", True),
        ("unet/config.json", "attention_type", "gated"),
        ("unet/config.json", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("unet/config.json", "down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        ("unet/config.json", "quantization_config", {"quant_method": "bitsandbytes"}),
        ("unet/config.json", "_class_name", "UNet2DModel"),
        ("unet/config.json", "sample_size", [8, 8]),
        ("unet/config.json", "sample_size", None),
        ("unet/config.json", "sample_size", 1 << 20),
        ("unet/config.json", "in_channels", [[4]]),
        ("unet/config.json", "cross_attention_dim", [[32], {}]),
        ("unet/config.json", "cross_attention_dim", 48),
        ("vae/config.json", "_class_name", "AutoencoderTiny"),
        ("vae/config.json", "latent_channels", 16),
        ("vae/config.json", "in_channels", 4),
        ("vae/config.json", "scaling_factor", None),
        ("vae/config.json", "scaling_factor", 10**400),
        ("vae/config.json", "scaling_factor", True),
        ("vae/config.json", "layers_per_block", 300),
        ("vae/config.json", "block_out_channels", [1 << 14, 1 << 14]),
        ("unet/config.json", "block_out_channels", [32] * 17),
        ("unet/config.json", "transformer_layers_per_block", [[1000], 1]),
        ("unet/config.json", "conv_in_kernel", 10_001),
        ("text_encoder/config.json", "model_type", "t5"),
        ("text_encoder/config.json", "hidden_size", "32"),
        ("text_encoder/config.json", "num_hidden_layers", 3000),
        ("text_encoder/config.json", "vocab_size", 1 << 24),
        ("text_encoder/config.json", "quantization_config", {"quant_method": "gptq"}),
        ("scheduler/scheduler_config.json", "prediction_type", "sample"),
        ("scheduler/scheduler_config.json", "prediction_type", "flow_prediction"),
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True),
        ("scheduler/scheduler_config.json", "timestep_spacing", "nonsense"),
        ("scheduler/scheduler_config.json", "beta_schedule", "cosine"),
        ("scheduler/scheduler_config.json", "use_flow_sigmas", True),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**8),
        ("scheduler/scheduler_config.json", "timestep_type", "continuous"),
        ("scheduler/scheduler_config.json", "variance_type", "learned_range"),
        ("tokenizer/tokenizer_config.json", "padding_side", "left"),
        ("tokenizer/tokenizer_config.json", "truncation_side", "left"),
        ("tokenizer/tokenizer_config.json", "split_special_tokens", True),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", "T5Tokenizer"),
        *(("tokenizer/tokenizer_config.json", "model_max_length", value) for value in ([77], "77", True, 2, math.inf)),
        ("tokenizer/tokenizer_config.json", "max_len", {}),
        ("model_index.json", "_class_name", "StableDiffusionPAGPipeline"),
        ("model_index.json", "_class_name", "StableDiffusionInpaintPipeline"),
        ("model_index.json", "_class_name", "LatentConsistencyModelPipeline"),
        ("model_index.json", "_class_name", "StableDiffusionXLPipeline"),
        ("model_index.json", "controlnet", ["diffusers", "ControlNetModel"]),
        ("model_index.json", "vae", ["diffusers", "AutoencoderTiny"]),
        ("model_index.json", "text_encoder", ["transformers", "CLIPTextModelWithProjection"]),
        ("model_index.json", "tokenizer", ["transformers", "T5Tokenizer"]),
        ("model_index.json", "unet", [None, None]),
        ("model_index.json", "vae", ["diffusers", None]),
        ("model_index.json", "vae", ["diffusers"]),
        ("model_index.json", "tokenizer", [{}, "CLIPTokenizer"]),
        *((f"{part}/config.json", "unheard_of", 3) for part in ("unet", "vae", "text_encoder")),
        ("scheduler/scheduler_config.json", "unheard_of", 3),
        ("tokenizer/tokenizer_config.json", "unheard_of", 3),
        ("model_index.json", "unheard_of", 3),
    ],
    ids=str,
)
def test_a_value_that_is_not_followed_refuses_the_base_and_is_named(base, file, key, value):
    edit(base / file, **{key: value})
    said = refusal(base)
    assert any(str(named) in said for named in (key, value, value[-1] if isinstance(value, list) else key))


def test_a_unet_that_reads_no_text_is_refused(tmp_path):
    blind = unet(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, mid_block_type=None)
    assert "its unet has no cross-attention" in refusal(write_miniature(tmp_path, unet=blind))


@pytest.mark.parametrize("value", [None, [None, None]])
def test_an_unknown_key_without_a_value_changes_nothing(base, value):
    edit(base / "model_index.json", unheard_of=value)
    assert load_base(str(base), device="cpu").fingerprint


@pytest.mark.parametrize(
    ("channels", "what"), [(9, "inpainting"), (8, "instructions"), (7, "upscaling")], ids=["9", "8", "7"]
)
def test_a_unet_that_reads_more_than_latents_is_refused(tmp_path, channels, what):
    said = refusal(write_miniature(tmp_path, unet=unet(in_channels=channels)))
    assert f"reads {channels} channels and writes 4" in said
    assert what in said


def test_a_vae_of_other_channels_than_the_unet_is_refused(tmp_path):
    assert "its vae has 8" in refusal(write_miniature(tmp_path, vae=vae(latent_channels=8)))


def test_xls_refiner_is_refused(tmp_path):
    """It reads five sizes and a score, and has no first text encoder."""
    folder = write_miniature(tmp_path / "sizes", "xl", unet=xl_unet(sizes=5))
    assert "XL's refiner reads an aesthetic score" in refusal(folder)
    folder = write_miniature(tmp_path / "parts", "xl")
    edit(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    assert "StableDiffusionXLPipeline without text_encoder" in refusal(folder)
    folder = write_miniature(tmp_path / "asked", "xl")
    edit(folder / "model_index.json", requires_aesthetics_score=True)
    assert "requires_aesthetics_score" in refusal(folder)


def test_xl_latents_that_are_shifted_are_refused(tmp_path):
    """XL's pipeline reads these two keys; that of 1.x does not."""
    folder = write_miniature(tmp_path, "xl", vae=vae(latents_mean=[0.1] * 4, latents_std=[2.0] * 4))
    assert "latents_mean and latents_std" in refusal(folder)


@pytest.mark.parametrize(
    "kind",
    [
        "FlowMatchEulerDiscreteScheduler",
        "EDMEulerScheduler",
        "IPNDMScheduler",
        "DDIMInverseScheduler",
        "CMStochasticIterativeScheduler",
        "UnCLIPScheduler",
    ],
)
def test_a_scheduler_of_another_kind_of_model_is_refused_with_those_that_work(tmp_path, kind):
    folder = write_miniature(tmp_path)
    getattr(diffusers, kind)().save_pretrained(folder / "scheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", kind])
    assert f"its scheduler is {kind}, which samples another kind of model" in (said := refusal(folder))
    assert "known: DDIM," in said


def test_what_is_not_a_scheduler_is_called_so(base):
    edit(base / "model_index.json", scheduler=["diffusers", "UNet2DConditionModel"])
    assert "names UNet2DConditionModel as its scheduler, which is not a scheduler" in refusal(base)


def test_settings_of_a_scheduler_that_exclude_each_other_are_refused(tmp_path):
    folder = write_miniature(tmp_path, scheduler=diffusers.EulerDiscreteScheduler(**NOISE))
    edit(folder / "scheduler" / "scheduler_config.json", use_karras_sigmas=True, use_exponential_sigmas=True)
    assert "Only one of" in refusal(folder)


def test_every_limited_key_is_a_known_key_or_one_that_only_refuses():
    for part, limited in ALLOWED.items():
        assert limited.keys() - KEYS[part].keys() <= {"quantization_config"}, part


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"],
)
def test_half_of_a_character_is_refused(base, file):
    """JSON can write it, `\\ud800`; UTF-8, and so a fingerprint, cannot."""
    edit(base / file, _name_or_path="\ud800")
    assert "cannot be read" in refusal(base)


def test_what_the_libraries_let_through_ends_in_our_error(base):
    """diffusers reads no `beta_start` for this schedule, and the fingerprint does."""
    edit(base / "scheduler" / "scheduler_config.json", beta_schedule="squaredcos_cap_v2", beta_start="x")
    assert "cannot be loaded" in refusal(base)
