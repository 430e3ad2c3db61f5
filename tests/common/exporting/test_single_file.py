"""A whole checkpoint in one file: diffusers' own reader of such files finds every weight in it."""

from __future__ import annotations

import dataclasses

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from mos_common.base_model import base_path
from mos_common.edlora import attached
from mos_common.errors import RequestError
from mos_common.exporting.single_file import check_single_file, checkpoint_tensors
from mos_common.fused_model import read_fused

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize("kind", ["tiny", "sixteen", "like_2", "xl"])
def test_diffusers_finds_every_weight_of_base_and_changes_in_the_single_file(
    kind, request, mixed, quickly, random_base_folder, folder_of_2, tmp_path
):
    """To the bit: UNet, VAE and text encoders."""
    base = request.getfixturevalue(kind)
    quickly(mixed(base), base, "single-file", tmp_path / "model.safetensors", "float32")
    folders = {"tiny": base_path("tiny"), "like_2": folder_of_2}
    config = folders.get(kind) or random_base_folder(**({"xl": True} if kind == "xl" else {}))
    pipeline = (StableDiffusionXLPipeline if kind == "xl" else StableDiffusionPipeline).from_single_file(
        str(tmp_path / "model.safetensors"), config=str(config), local_files_only=True, dtype=torch.float32
    )
    with attached(base, read_fused(tmp_path / "fused").changes):
        for part in PARTS if kind == "xl" else PARTS[:3]:
            found, expected = getattr(pipeline, part).state_dict(), getattr(base, part).state_dict()
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(found[name], tensor), f"{part}.{name}"
    assert (tmp_path / "model.words" / "alice.cat.safetensors").is_file()


OF_1 = (
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
)
OPENCLIP = (
    "token_embedding.weight",
    "positional_embedding",
    "transformer.resblocks.0.ln_1.weight",
    "transformer.resblocks.0.attn.in_proj_weight",
    "transformer.resblocks.0.attn.in_proj_bias",
    "transformer.resblocks.0.attn.out_proj.weight",
    "transformer.resblocks.1.mlp.c_fc.bias",
    "transformer.resblocks.1.mlp.c_proj.weight",
    "ln_final.bias",
)


def test_a_single_file_has_the_names_of_stable_diffusion_1(sixteen, mixed, quickly, tmp_path):
    """Names and shapes are those of v1-5-pruned.safetensors where counting easily goes wrong.

    Half precision is the default.
    """
    quickly(mixed(sixteen), sixteen, "single-file", tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    assert set(OF_1) <= tensors.keys()
    assert tensors["first_stage_model.decoder.mid.attn_1.q.weight"].shape[2:] == (1, 1)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_a_single_file_has_the_names_of_stable_diffusion_2(like_2):
    """Those of v2-1_768-ema-pruned.safetensors: OpenCLIP's names, linear projections."""
    tensors = checkpoint_tensors(like_2, torch.float32)
    of_unet = {name for name in OF_1 if not name.startswith("cond_stage_model.")}
    assert of_unet | {f"cond_stage_model.model.{name}" for name in OPENCLIP} <= tensors.keys()
    assert tensors["model.diffusion_model.input_blocks.1.1.proj_in.weight"].ndim == 2
    width = like_2.text_encoder.config.hidden_size
    assert tensors["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"].shape == (3 * width, width)
    assert not [name for name in tensors if name.startswith("cond_stage_model.transformer.")]


def test_a_single_file_has_the_names_of_xl(xl):
    """Those of sd_xl_base_1.0.safetensors: two encoders, and an embedding of sizes."""
    tensors = checkpoint_tensors(xl, torch.float32)
    expected = {f"conditioner.embedders.1.model.{name}" for name in (*OPENCLIP, "text_projection")}
    expected |= {
        "conditioner.embedders.0.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight",
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.label_emb.0.2.bias",
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.8.0.skip_connection.weight",
    }
    assert expected <= tensors.keys()
    assert {name.split(".")[0] for name in tensors} == {"model", "first_stage_model", "conditioner"}


@pytest.mark.parametrize(
    ("prediction", "zero_snr", "marks"),
    [("epsilon", False, set()), ("v_prediction", False, {"v_pred"}), ("v_prediction", True, {"v_pred", "ztsnr"})],
)
def test_an_xl_model_that_predicts_v_is_marked_as_comfyui_and_forge_know_it(xl, prediction, zero_snr, marks):
    scheduler = diffusers.EulerDiscreteScheduler.from_config(
        {**xl.scheduler.config, "prediction_type": prediction, "rescale_betas_zero_snr": zero_snr}
    )
    tensors = checkpoint_tensors(dataclasses.replace(xl, scheduler=scheduler), torch.float16)
    assert {name for name in tensors if "." not in name} == marks


def test_two_single_files_are_equal(folder, quickly, tiny, tmp_path):
    for name in ("one", "other"):
        quickly(folder, tiny, "single-file", tmp_path / name / "model.safetensors")
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["model.safetensors", "model.words"]
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


def test_a_base_laid_out_like_none_of_them_is_no_single_file(xl, like_2):
    with pytest.raises(RequestError, match="an embedding of sizes without a second text encoder"):
        check_single_file(dataclasses.replace(like_2, unet=xl.unet))
    with pytest.raises(RequestError, match="a text encoder with quick_gelu, not gelu"):
        check_single_file(dataclasses.replace(like_2, text_encoder=xl.text_encoder))
