"""`--base` with a checkpoint file, in the commands of both sides; kits name it without its path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mos_client.cli.main import app as client
from mos_common.errors import BaseModelError
from mos_common.fused_model import read_fused
from mos_common.kit import read_kit
from mos_server.cli.main import app as server
from reference.checkpoints import miniature


def run(app: object, *words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


@pytest.fixture
def checkpoint(random_base_folder, tmp_path, monkeypatch) -> Path:
    """A checkpoint with its configurations, given by a relative name."""
    monkeypatch.chdir(tmp_path)
    miniature(random_base_folder()).write(tmp_path / "house.v2.safetensors")
    return Path("house.v2.safetensors")


def test_a_federation_on_a_checkpoint(checkpoint, sixteen, tmp_path):
    run(server, "init", "state", "--base", checkpoint)
    config = json.loads((tmp_path / "state" / "config.json").read_bytes())
    assert config["base"] == str(tmp_path / checkpoint)  # `serve` may be started from elsewhere
    assert config["base_fingerprint"] == sixteen.fingerprint
    run(server, "invite", "state", "alice", "--out", "alice.kit")
    assert read_kit(tmp_path / "alice.kit").base_name == "house.v2"


def test_concepts_on_a_checkpoint_are_checked_tuned_fused_drawn_and_exported(checkpoint, make_pictures, tmp_path):
    pictures, base = make_pictures(4, side=32), ("--base", checkpoint)
    run(client, "check", pictures, *base)
    quick = ("--steps", "1", "--set", "watch_every=0", "--set", "batch=1")
    run(client, "tune", pictures, "--concept", "<cat>", "--class", "cat", *base, *quick, "--out", "cat.safetensors")
    fast = ("--set", "contexts=V", "--set", "steps=1", "--set", "ordinary=a cat")
    run(server, "fuse", "cat.safetensors", *base, *fast, "--out", "fused")
    assert read_fused(tmp_path / "fused").manifest.base_name == "house.v2"
    run(client, "draw", "fused", "<cat>", *base, "--set", "steps=1", "--out", "cat.png")
    run(server, "export", "fused", *base, "--format", "lora", "--out", "fused.safetensors")
    assert (tmp_path / "cat.png").is_file() and (tmp_path / "fused.safetensors").is_file()


def test_every_command_refuses_a_lora_as_its_base(checkpoint, make_pictures, tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"lora_unet_x.lora_down.weight": torch.ones(4, 4)}, tmp_path / "style.safetensors")
    base = ("--base", "style.safetensors")
    for app, words in (
        (server, ("init", "state")),
        (client, ("check", make_pictures())),
    ):
        with pytest.raises(BaseModelError, match=r"style\.safetensors is a LoRA, not a base model: mos-client import"):
            run(app, *words, *base)
