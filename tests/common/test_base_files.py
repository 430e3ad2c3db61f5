"""Where a base may lie: in the hub's cache, in a folder of a folder, under any name."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from mos_common.base_files import find_base
from mos_common.base_names import absolute_name, short_name
from mos_common.errors import BaseModelError

ONE, OTHER = "1" * 40, "2" * 40


def cached(root: Path, *commits: str, main: str | None = None, name: str = "models--owner--sd--v1-5") -> Path:
    """Make a model of the cache; each snapshot has a model_index.json that names its commit."""
    folder = root / name
    for commit in commits:
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "model_index.json").write_text(json.dumps({"commit": commit}))
    if main is not None:
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(f"{main}\n")
    return folder


def refused(name: Path | str, said: str) -> None:
    with pytest.raises(BaseModelError, match=said):
        find_base(str(name))


def test_a_folder_of_the_cache_is_the_snapshot_that_main_names(tmp_path):
    folder = cached(tmp_path, ONE, OTHER, main=OTHER)
    for given in (folder, folder / "snapshots"):
        assert find_base(str(given)).folder == folder / "snapshots" / OTHER


def test_the_only_snapshot_is_taken_without_refs(tmp_path):
    """`huggingface-cli download --revision` leaves no refs/main."""
    assert find_base(str(cached(tmp_path, ONE))).folder.name == ONE
    # refs/main of a commit that was cleaned up
    assert find_base(str(cached(tmp_path / "b", ONE, main=OTHER))).folder.name == ONE


def test_several_snapshots_are_a_question(tmp_path):
    folder = cached(tmp_path, ONE, OTHER)
    refused(folder, rf"2 snapshots, and its refs/main names none.*{folder}/snapshots/{ONE} or .*{OTHER}")
    assert find_base(str(folder / "snapshots" / ONE)).folder.name == ONE


def test_a_cache_without_snapshots_is_refused(tmp_path):
    (tmp_path / "models--owner--sd" / "snapshots").mkdir(parents=True)
    refused(tmp_path / "models--owner--sd", "without a snapshot: download it again")


def test_a_cached_model_loads(random_base_folder, sixteen, tmp_path):
    from mos_common.base_model import load_base

    folder = cached(tmp_path, ONE, main=ONE)
    shutil.copytree(random_base_folder(), folder / "snapshots" / ONE, dirs_exist_ok=True)
    assert load_base(str(folder), device="cpu").fingerprint == sixteen.fingerprint


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (["inner/model_index.json"], r"Give the model inside: .*/inner"),
        (["models--owner--sd--v1-5/refs/main"], r"a cache of the hub: give a model of it, owner/sd--v1-5"),
        (["v1-5.safetensors", "notes.txt"], r"Give the checkpoint itself: .*v1-5\.safetensors"),
        (["v1-5.ckpt"], r"Give the checkpoint itself: .*v1-5\.ckpt"),
        (["adapter_config.json", "adapter_model.safetensors"], r"an adapter \(a LoRA"),
        (["pytorch_lora_weights.safetensors"], r"an adapter \(a LoRA"),
        (["adapter.safetensors", "manifest.json"], r"or a fused model\), which is made for a base model"),
        (["picture.png"], r"Give `tiny`, a diffusers folder, a checkpoint file"),
        ([], r"no model_index.json"),
    ],
    ids=str,
)
def test_a_folder_that_is_no_model_says_what_to_give(tmp_path, made, said):
    for name in made:
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_text("{}")
    (tmp_path / "given").mkdir(exist_ok=True)
    refused(tmp_path / "given", rf"given is not a diffusion model.*{said}|{said}")


def test_a_part_of_a_model_points_to_the_model(random_base_folder):
    refused(random_base_folder() / "unet", rf"one part of a model: give {random_base_folder()}")


@pytest.mark.parametrize(
    "name", ["/nowhere/at/all", "./sd", "~/sd", "models/sd/v1", "sd15", "v1-5.safetensors", "models/v1-5.safetensors",
             "https://huggingface.co/owner/model"]
)  # fmt: skip
def test_a_path_that_is_not_there_is_never_looked_up(name, monkeypatch):
    """Only owner/model may be a model of the hub."""
    monkeypatch.setattr("mos_common.base_files.fetch_base", lambda _: pytest.fail("the hub was asked"))
    refused(name, r"no base model at .*no such file or folder.*owner/model")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sd15.zip", "unpack it, and give the folder"),
        ("sd/model_index.json", "give the folder with"),
        ("sd/config.json", "is a configuration"),
    ],
)
def test_a_file_of_a_folder_or_an_archive_points_to_the_folder(tmp_path, name, said):
    (tmp_path / "sd").mkdir()
    (tmp_path / name).write_text("{}")
    refused(tmp_path / name, said)


def test_an_archive_under_another_name_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "sd15.ckpt", "w") as archive:
        archive.writestr("sd15/model_index.json", "{}")
    refused(tmp_path / "sd15.ckpt", "is a zip archive, not a file of weights: unpack it first")


def test_a_link_to_nothing_is_named(tmp_path):
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "model_index.json").symlink_to("../blobs/abc")
    refused(tmp_path / "copied", r"a link to a file that is not there.*cp -rL")
    (tmp_path / "sd").symlink_to(tmp_path / "gone")
    refused(tmp_path / "sd", r"sd is a link to .*/gone, which is not there")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("tiny", "tiny"),
        ("owner/model", "model"),
        ("/srv/models/sd-v1-5", "sd-v1-5"),
        ("/srv/v1-5-pruned.emaonly.safetensors", "v1-5-pruned.emaonly"),
        ("model.ckpt", "model"),
        ("/cache/models--owner--sd-v1-5", "sd-v1-5"),
        (f"/cache/models--owner--sd-v1-5/snapshots/{ONE}", "sd-v1-5"),
    ],
)
def test_a_base_is_called_without_its_path(name, short):
    assert short_name(name) == short


def test_a_name_is_found_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "sd").mkdir()
    (tmp_path / "blob").write_text("")
    (tmp_path / "v1.safetensors").symlink_to(tmp_path / "blob")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_name("sd") == absolute_name("~/sd") == str(tmp_path / "sd")
    assert absolute_name("v1.safetensors") == str(tmp_path / "v1.safetensors")  # its suffix is kept
    assert absolute_name("tiny") == "tiny"
    assert absolute_name("owner/model") == "owner/model"
