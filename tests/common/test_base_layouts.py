"""A base of every layout, drawn by us and by diffusers' own pipeline from the same seed."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from mos_common.base_model import load_base
from mos_common.drawing import Drawing, draw
from reference.miniatures import LAYOUTS, NOISE, by_diffusers, edit, tokenizer, unet, vae, write_miniature, xl_unet

CLOSE = {"rtol": 0, "atol": 1e-4}
PROMPT = "a cat, a dog"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """The folder of each layout's miniature, written once."""
    written: dict[str, Path] = {}

    def folder(layout: str) -> Path:
        if layout not in written:
            written[layout] = write_miniature(tmp_path_factory.mktemp("base"), layout)
        return written[layout]

    return folder


def check_same(folder: Path, prompt: str = PROMPT, negative: str = "", guidance: float = 7.5, steps: int = 3) -> None:
    how = Drawing(steps=steps, guidance=guidance, negative=negative)
    ours = draw(load_base(str(folder), device="cpu"), [prompt], [5], how=how)
    told = {"negative_prompt": [negative]} if negative else {}
    theirs = by_diffusers(folder, prompt, 5, num_inference_steps=steps, guidance_scale=guidance, **told)
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("negative", ["", "dog"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_picture_is_the_one_of_diffusers(folder_of, layout, guidance, negative):
    check_same(folder_of(layout), negative=negative, guidance=guidance)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prompt", ["a cat!", "!", "!! cat ! dog", "", "cat cat cat cat"])
def test_every_prompt_that_fits_is_read_as_diffusers_reads_it(folder_of, layout, prompt):
    """XL's second tokenizer pads with "!", so it reads "!" as another token than the first."""
    check_same(folder_of(layout), prompt, negative="dog !")


def test_zeros_are_not_the_empty_text(folder_of):
    """The two kinds of XL have the same weights, so without guidance they draw the same."""
    with_zeros, without = (load_base(str(folder_of(layout)), device="cpu") for layout in ("xl", "xl without zeros"))
    assert with_zeros.fingerprint == without.fingerprint

    def apart(**how: object) -> float:
        drawn = [draw(base, [PROMPT], [5], how=Drawing(steps=3, **how)) for base in (with_zeros, without)]
        return float((drawn[0] - drawn[1]).abs().max())

    assert apart(guidance=7.5) > 0.01
    assert apart(guidance=7.5, negative="dog") == apart(guidance=1.0) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"mid_block_type": None},
        {"mid_block_type": "UNetMidBlock2D"},
        {"transformer_layers_per_block": 2},
        {"layers_per_block": (1, 2)},
        {"resnet_time_scale_shift": "scale_shift"},
        {"center_input_sample": True},
        {"time_embedding_type": "fourier", "flip_sin_to_cos": False},
        {"conv_in_kernel": 5},
        {"resnet_out_scale_factor": 2.0},
        {"upcast_attention": True},
        {"flip_sin_to_cos": False, "freq_shift": 1},
        {"time_embedding_act_fn": "silu", "timestep_post_act": "silu"},
        {"norm_num_groups": 4, "norm_eps": 1e-3},
        {"cross_attention_dim": (24, 24)},
    ],
    ids=str,
)
def test_a_setting_of_the_unet_that_is_taken_is_followed(tmp_path, changes):
    """Distilled models have no middle block, or one without attention."""
    check_same(write_miniature(tmp_path, unet=unet(**changes)))


def test_xls_blocks_may_be_of_other_depths_on_the_way_up(tmp_path):
    deep = xl_unet(reverse_transformer_layers_per_block=[[2, 1], 1])
    check_same(write_miniature(tmp_path, "xl", unet=deep))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("vae/config.json", {"scaling_factor": 0.5}),
        ("vae/config.json", {"shift_factor": 0.5}),
        ("vae/config.json", {"latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
        ("text_encoder/config.json", {"layer_norm_eps": 1e-2}),
        ("text_encoder/config.json", {"return_dict": False, "output_hidden_states": True}),
        ("text_encoder/config.json", {"eos_token_id": 2}),
        ("scheduler/scheduler_config.json", {"steps_offset": 0}),
        ("scheduler/scheduler_config.json", {"clip_sample": True}),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "trailing"}),
        ("scheduler/scheduler_config.json", {"set_alpha_to_one": True}),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.01] * 1000}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 12}),
        ("tokenizer/tokenizer_config.json", {"pad_token": "!"}),
        ("tokenizer/tokenizer_config.json", {"add_prefix_space": True, "do_lower_case": False}),
        ("unet/config.json", {"_diffusers_version": "0.8.0"}),
        ("unet/config.json", {"decay": 0.99, "power": 0.7}),
        ("model_index.json", {"_class_name": "StableDiffusionImg2ImgPipeline"}),
    ],
    ids=str,
)
def test_a_setting_that_is_taken_is_followed_as_diffusers_follows_it(tmp_path, file, changes):
    """Among them what its pipeline for 1.x corrects: offsets, clipping, sizes of old files."""
    folder = write_miniature(tmp_path / "base")
    edit(folder / file, **changes)
    if file == "model_index.json":
        theirs = write_miniature(tmp_path / "plain")
        ours, expected = (
            draw(load_base(str(each), device="cpu"), ["cat"], [5], how=Drawing(3)) for each in (folder, theirs)
        )
        assert torch.equal(ours, expected)
        return
    check_same(folder, "a cat, a dog, a cat")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("text_encoder_2/config.json", {"eos_token_id": 2}),
        ("text_encoder_2/config.json", {"eos_token_id": 5}),
        ("tokenizer_2/tokenizer_config.json", {"pad_token": "a"}),
        ("scheduler/scheduler_config.json", {"steps_offset": 0}),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}),
        ("scheduler/scheduler_config.json", {"final_sigmas_type": "sigma_min"}),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ],
    ids=str,
)
def test_a_setting_of_xl_that_is_taken_is_followed(tmp_path, file, changes):
    folder = write_miniature(tmp_path, "xl")
    edit(folder / file, **changes)
    check_same(folder)


def test_xl_clips_where_its_own_scheduler_says_so(tmp_path):
    clipping = diffusers.DDIMScheduler(**NOISE, clip_sample=True, clip_sample_range=0.5)
    check_same(write_miniature(tmp_path, "xl", scheduler=clipping))


def test_the_vae_and_the_tokenizer_of_a_base_are_its_own(tmp_path):
    parts = {"vae": vae(scaling_factor=1.0, force_upcast=False), "tokenizer": tokenizer("#")}
    check_same(write_miniature(tmp_path, **parts))
