"""Which weights of a folder are loaded, in every mixture that downloads leave."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from mos_common.base_model import load_base
from mos_common.base_weights import choose_weights
from mos_common.errors import BaseModelError

UNET = "diffusion_pytorch_model"


@pytest.fixture
def copied(random_base_folder, tmp_path) -> Path:
    return Path(shutil.copytree(random_base_folder(), tmp_path / "copy"))


def fingerprint(folder: Path) -> str:
    return load_base(str(folder), device="cpu").fingerprint


def saved_as(random_base_folder, folder: Path, **how: object) -> Path:
    """Save the random base again with diffusers, as people do before they upload a model."""
    pipeline = StableDiffusionPipeline.from_pretrained(random_base_folder(), safety_checker=None)
    pipeline.to(torch.float16 if how.get("variant") == "fp16" else torch.float32)
    pipeline.save_pretrained(folder, **how)
    return folder


@pytest.mark.parametrize(
    "how",
    [
        {"variant": "fp16"},
        {"variant": "fp16", "safe_serialization": False},
        {"safe_serialization": False},
        {"max_shard_size": "60KB"},
        {"variant": "fp16", "max_shard_size": "30KB"},
    ],
    ids=str,
)
def test_a_folder_in_any_format_is_the_same_base(random_base_folder, sixteen, tmp_path, how):
    folder = saved_as(random_base_folder, tmp_path / "saved", **how)
    written = {file.name for file in (folder / "unet").iterdir()}
    assert f"{UNET}.safetensors" not in written  # the case is what it says
    assert fingerprint(folder) == sixteen.fingerprint


def test_earlier_names_of_shards_are_read(random_base_folder, sixteen, tmp_path):
    """Until 2024, diffusers put the variant after the shard's number."""
    folder = saved_as(random_base_folder, tmp_path / "saved", variant="fp16", max_shard_size="30KB")
    (index,) = (folder / "unet").glob("*.index.fp16.json")
    content = json.loads(index.read_text())
    renamed = {
        name: name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors")
        for name in set(content["weight_map"].values())
    }
    for old, new in renamed.items():
        (folder / "unet" / old).rename(folder / "unet" / new)
    content["weight_map"] = {tensor: renamed[file] for tensor, file in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    assert fingerprint(folder) == sixteen.fingerprint


def test_each_part_has_its_own_choice(copied, sixteen):
    """UNet fp16 only, VAE both, text encoder in full."""
    unet = copied / "unet" / f"{UNET}.safetensors"
    save_file({k: v.half() for k, v in load_file(unet).items()}, unet.with_name(f"{UNET}.fp16.safetensors"))
    unet.unlink()
    vae = copied / "vae" / f"{UNET}.safetensors"
    shutil.copy(vae, vae.with_name(f"{UNET}.fp16.safetensors"))
    assert fingerprint(copied) == sixteen.fingerprint


def test_full_precision_is_taken_before_fp16(copied, sixteen):
    """The fp16 file beside it is another model, so that the choice shows."""
    full = copied / "unet" / f"{UNET}.safetensors"
    save_file({k: v.half() * 0 for k, v in load_file(full).items()}, full.with_name(f"{UNET}.fp16.safetensors"))
    assert fingerprint(copied) == sixteen.fingerprint


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["x.safetensors", "x.bin", "x.fp16.safetensors"], ["x.safetensors"]),
        (["x.bin", "x.fp16.safetensors"], ["x.bin"]),
        (["x.fp16.bin", "x.fp16.safetensors", "x.non_ema.safetensors"], ["x.fp16.safetensors"]),
        (["x.fp16.bin", "x.bf16.safetensors"], ["x.fp16.bin"]),
        (["x.bf16.safetensors"], ["x.bf16.safetensors"]),
        (["x.non_ema.bin"], ["x.non_ema.bin"]),
        # shards count only when all of them are there
        (["x-00001-of-00002.safetensors", "x.safetensors.index.json", "x.fp16.safetensors"], ["x.fp16.safetensors"]),
        (
            ["x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors", "x.safetensors.index.json", "x.bin"],
            ["x.safetensors.index.json", "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"],
        ),
    ],
)
def test_the_order_of_preference(names, chosen):
    def real(name: str) -> str:
        return name.replace("x", UNET, 1)

    found = choose_weights("unet", map(real, names), "unet")
    assert list(found.names) == [real(name) for name in chosen]


def test_of_several_unknown_variants_none_is_guessed():
    with pytest.raises(BaseModelError, match=r"variants bf16, non_ema and neither full precision nor fp16: keep"):
        choose_weights("unet", [f"{UNET}.bf16.safetensors", f"{UNET}.non_ema.safetensors"], "sd/unet")


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (["config.json"], "it holds none at all"),
        (["config.json", "diffusion_flax_model.msgpack"], "diffusion_flax_model.msgpack"),
        (["openvino_model.bin", "openvino_model.xml"], "openvino_model.bin"),
        (["model.onnx"], "model.onnx"),
        (["model.safetensors"], "model.safetensors"),  # the name of a text encoder's
        ([f"{UNET}-00001-of-00002.safetensors", f"{UNET}.safetensors.index.json"], "no whole set"),
    ],
)
def test_a_part_without_weights_says_what_it_holds(held, said):
    with pytest.raises(BaseModelError, match=said):
        choose_weights("unet", held, "sd/unet")


def test_a_pointer_of_git_lfs_is_named(copied):
    file = copied / "vae" / f"{UNET}.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 334643276\n")
    with pytest.raises(BaseModelError, match=r"vae.*is a Git LFS pointer.*git lfs pull"):
        load_base(str(copied))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_pickle_in_a_folder_that_runs_a_command_is_refused_and_nothing_is_run(copied, tmp_path, part):
    class Calls:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'marker'}",)

    (weights,) = (copied / part).glob("*.safetensors")
    held = load_file(weights)
    weights.unlink()
    name = f"{UNET}.bin" if part == "unet" else "pytorch_model.bin"
    torch.save(held | {"more": Calls()}, copied / part / name)
    with pytest.raises(BaseModelError, match=rf"{name} is refused: it would call (posix|nt)\.system"):
        load_base(str(copied))
    assert not (tmp_path / "marker").exists()


def test_a_bin_file_of_the_earlier_form_is_read(copied, sixteen):
    """torch.save before 1.6 wrote no zip."""
    weights = copied / "vae" / f"{UNET}.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"), _use_new_zipfile_serialization=False)
    weights.unlink()
    assert fingerprint(copied) == sixteen.fingerprint


def test_a_snapshot_copied_without_its_blobs_is_named(copied):
    """`cp -r` of a snapshot copies links, not what they stand for."""
    weights = copied / "vae" / f"{UNET}.safetensors"
    weights.unlink()
    weights.symlink_to("../../../blobs/abc")
    with pytest.raises(BaseModelError, match=r"is a link to .*blobs/abc, which is not there: copy .*cp -rL"):
        load_base(str(copied))
