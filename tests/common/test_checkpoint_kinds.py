"""A file of weights is called what it is, by its tensors."""

from __future__ import annotations

import pytest

from mos_common.checkpoint_kinds import Kind, kind_of
from mos_common.errors import BaseModelError

UNET = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3), "model.diffusion_model.out.2.bias": (4,)}
VAE = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
CLIP = "transformer.text_model.final_layer_norm.bias"
ONE = {f"cond_stage_model.{CLIP}": (768,)}
TWO = {"cond_stage_model.model.ln_final.bias": (1024,)}
XL = {f"conditioner.embedders.0.{CLIP}": (768,), "conditioner.embedders.1.model.ln_final.bias": (1280,)}


@pytest.mark.parametrize(("texts", "kind"), [(ONE, Kind.ONE), (TWO, Kind.TWO), (XL, Kind.XL)])
def test_the_three_kinds_are_told_by_their_text_encoders(texts, kind):
    assert kind_of("x", UNET | VAE | texts) is kind


def test_a_vae_under_its_short_name_counts():
    assert kind_of("x", UNET | {"vae.decoder.conv_in.weight": (1,)} | ONE) is Kind.ONE


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["base_model.model.unet.mid_block.to_q.lora_A.weight"], "a LoRA"),
        (["unet.down_blocks.0.attn1.to_q.lora.up.weight"], "a LoRA"),
        (["lora_unet_mid_block_proj_in.hada_w1_a"], "a LyCORIS file"),
        (["lora_unet_mid_block_proj_in.lokr_w2"], "a LyCORIS file"),
        (["emb_params"], "a textual inversion"),
        (["clip_g", "clip_l"], "a textual inversion"),
        (["control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"], "a ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight"], "a ControlNet"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "an AnimateDiff motion module"),
        (["encoder.conv_in.weight", "decoder.mid.attn_1.q.weight"], "a VAE alone"),
        (["first_stage_model.decoder.conv_in.weight"], "a VAE alone"),
        (["conv_in.weight", "down_blocks.0.attentions.0.norm.weight"], "the UNet of a diffusers folder alone"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "a text encoder alone"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder"),
        (["model.1.sub.0.RDB1.conv1.0.weight"], "an upscaler of pictures"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "a model of another kind (flux-schnell)"),
        (["model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"], "a model of another kind (flux"),
        (["joint_blocks.37.x_block.mlp.fc1.weight"], "a model of another kind (sd35_large)"),
        (["fc.weight"], "a file without a UNet that we know"),
        ([], "a file without a UNet that we know"),
    ],
    ids=str,
)
def test_what_is_no_checkpoint_is_named(names, what):
    with pytest.raises(BaseModelError) as error:
        kind_of("given.safetensors", dict.fromkeys(names, (4, 4)))
    assert str(error.value).startswith(f"given.safetensors is {what}")
    assert "base model" in str(error.value)


def test_our_own_concept_file_is_named():
    with pytest.raises(
        BaseModelError, match="is a concept file, not a base model: give the model that it was tuned on"
    ):
        kind_of("cat.safetensors", {"unet.x.lora_A.weight": (4, 4)}, {"mos": "{}"})


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}, "an inpainting model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3)}, "an instruct-pix2pix model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 5, 3, 3)}, "a depth-to-image model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 6, 3, 3)}, "reads 6 channels"),
        ({"control_model.input_blocks.0.0.weight": (1,)}, "a checkpoint with a ControlNet"),
        ({"edm_mean": (1, 4, 1, 1)}, "Playground 2.5"),
        ({"edm_vpred.sigma_max": (1,)}, "a CosXL model"),
        ({"conditioner.embedders.0.model.ln_final.bias": (1280,)}, "an SDXL refiner"),
        ({"noise_augmentor.time_embed.weight": (1,)}, "Stable unCLIP"),
        ({"model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.bias": (1,)}, "Stable Video Diffusion"),
    ],
)
def test_checkpoints_of_other_kinds_are_named(more, what):
    with pytest.raises(BaseModelError, match=what):
        kind_of("x", UNET | VAE | ONE | more)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (UNET | ONE, r"has a UNet and no VAE \(first_stage_model"),
        (UNET | VAE, r"no text encoder"),
        (UNET, r"no VAE .*no text encoder"),
        (UNET | VAE | {"conditioner.embedders.1.model.ln_final.bias": (1280,)}, r"no first text encoder"),
    ],
)
def test_a_checkpoint_without_a_part_names_it(held, said):
    """Pruned files without VAE or CLIP are on the web too."""
    with pytest.raises(BaseModelError, match=rf"{said}.*with everything in it"):
        kind_of("x", held)
