"""The base model: what is loaded, what is refused, what its fingerprint stands for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mos_common.base_model import base_path, load_base
from mos_common.errors import BaseModelError, RequestError


@pytest.fixture
def copied(random_base_folder, tmp_path) -> Path:
    """A copy of the random base that a test may break."""
    return Path(shutil.copytree(random_base_folder(), tmp_path / "copy"))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def fingerprint(folder: Path) -> str:
    return load_base(str(folder), device="cpu").fingerprint


def test_a_loaded_base_is_frozen_and_in_eval_mode(base):
    for part in (base.text_encoder, base.unet, base.vae):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


def test_sizes_are_asked_of_the_model(tiny, sixteen):
    assert (tiny.picture_size, tiny.pixels_per_latent, tiny.text_length) == (64, 4, 56)
    assert (sixteen.picture_size, sixteen.pixels_per_latent, sixteen.text_length) == (16, 2, 20)


def test_what_is_not_known_better_is_tuned_like_stable_diffusion(tiny, sixteen):
    assert tiny.preset.name == "tiny"
    assert sixteen.preset.name == "stable-diffusion"


@pytest.mark.parametrize("part", ["encode_pictures", "decode_latents"])
def test_latents_are_what_the_vae_gives_times_its_scaling_factor(sixteen, part):
    if part == "encode_pictures":
        pictures = torch.rand(2, 3, 16, 16) * 2 - 1
        with torch.no_grad():
            expected = sixteen.vae.encode(pictures).latent_dist.mode() * 0.3
    else:
        pictures = torch.randn(2, 4, 8, 8)
        with torch.no_grad():
            expected = sixteen.vae.decode(pictures / 0.3).sample.clamp(-1, 1)
    torch.testing.assert_close(getattr(sixteen, part)(pictures), expected)


def test_half_and_full_precision_downloads_are_the_same_base(tiny, copied, tmp_path):
    """`tiny` is stored in float16: its float32 copy has the same fingerprint."""
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        base_path("tiny"), dtype=torch.float32, safety_checker=None
    )
    pipe.save_pretrained(tmp_path / "float32")
    stored = load_file(tmp_path / "float32" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float32}
    assert fingerprint(tmp_path / "float32") == tiny.fingerprint


def test_rounding_a_model_to_half_precision_keeps_its_fingerprint(sixteen, copied):
    for file in copied.rglob("*.safetensors"):
        save_file({k: v.half() for k, v in load_file(file).items()}, file, {"format": "pt"})
    assert fingerprint(copied) == sixteen.fingerprint


def test_the_fingerprint_does_not_depend_on_how_the_model_is_loaded(tiny):
    assert load_base("tiny", device="cpu", dtype="bfloat16").fingerprint == tiny.fingerprint


def test_a_copy_has_the_same_fingerprint(sixteen, copied):
    assert fingerprint(copied) == sixteen.fingerprint


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("which", [0, -1])
def test_any_changed_weight_changes_the_fingerprint(sixteen, copied, part, which):
    (file,) = (copied / part).glob("*.safetensors")
    weights = load_file(file)
    weights[sorted(weights)[which]].view(-1)[0] += 0.25
    save_file(weights, file, {"format": "pt"})
    assert fingerprint(copied) != sixteen.fingerprint


def test_swapped_weights_change_the_fingerprint(sixteen, copied):
    (file,) = (copied / "text_encoder").glob("*.safetensors")
    weights = load_file(file)
    k, q = (next(n for n in weights if n.endswith(f"layers.0.self_attn.{p}_proj.weight")) for p in "kq")
    weights[k], weights[q] = weights[q], weights[k]
    save_file(weights, file, {"format": "pt"})
    assert fingerprint(copied) != sixteen.fingerprint


def test_another_prediction_type_scaling_factor_or_vocabulary_is_another_base(sixteen, copied):
    found = {sixteen.fingerprint}
    edit(copied / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    found.add(fingerprint(copied))
    edit(copied / "vae" / "config.json", scaling_factor=0.31)
    found.add(fingerprint(copied))
    text = (copied / "tokenizer" / "tokenizer.json").read_text()
    (copied / "tokenizer" / "tokenizer.json").write_text(
        text.replace('"cat</w>"', '"cow</w>"').replace('t</w>"\n', 't</w>"\n')
    )
    words = json.loads((copied / "tokenizer" / "tokenizer.json").read_text())
    words["model"]["merges"] = []
    (copied / "tokenizer" / "tokenizer.json").write_text(json.dumps(words))
    found.add(fingerprint(copied))
    assert len(found) == 4


def test_a_missing_folder_is_named():
    with pytest.raises(BaseModelError, match="no base model at /nowhere/at/all"):
        load_base("/nowhere/at/all")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match=r"not a diffusion model.*model_index.json"):
        load_base(str(tmp_path))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BaseModelError, match="is empty"):
        load_base(str(tmp_path / "model.safetensors"))


def test_another_kind_of_pipeline_is_refused(copied):
    edit(
        copied / "model_index.json",
        _class_name="StableDiffusion3Pipeline",
        text_encoder_3=["transformers", "T5EncoderModel"],
    )
    with pytest.raises(BaseModelError, match=r"StableDiffusion3Pipeline.*Stable Diffusion 1.x and XL"):
        load_base(str(copied))


def test_a_part_that_is_promised_and_not_there_is_named(copied):
    edit(copied / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(BaseModelError, match="no folder text_encoder_2"):
        load_base(str(copied))


@pytest.mark.parametrize(
    "damage", ["truncate", "remove", "garbage index", "index is a list", "scheduler", "list scheduler"]
)
def test_a_damaged_folder_is_a_base_model_error(copied, damage):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    match damage:
        case "truncate":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "remove":
            weights.unlink()
        case "garbage index":
            (copied / "model_index.json").write_text("{not json")
        case "index is a list":
            (copied / "model_index.json").write_text("[1]")
        case "scheduler":
            edit(copied / "model_index.json", scheduler=["diffusers", "UNet2DConditionModel"])
        case "list scheduler":
            edit(copied / "model_index.json", scheduler="oops")
    with pytest.raises(BaseModelError):
        load_base(str(copied))


def test_devices_and_number_formats_that_do_not_exist_are_refused():
    with pytest.raises(RequestError, match="--device nonsense"):
        load_base("tiny", device="nonsense")
    with pytest.raises(RequestError, match=r"--dtype float8.*float32"):
        load_base("tiny", dtype="float8")
