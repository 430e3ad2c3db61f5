"""The fused model's folder, as a participant reads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mos_common.edlora import LowRank
from mos_common.errors import BaseModelError, FusionError, TrustError
from mos_common.fused_model import File, FusedModel, Manifest, NamedConcept, check_base, fused_tensors, read_fused

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def model() -> FusedModel:
    pair = LowRank(torch.randn(3, 5), torch.randn(4, 3), alpha=1.5)
    manifest = Manifest(
        base="ab" * 32,
        base_name="tiny",
        method="gradient",
        settings={"ridge": 1e-2},
        versions={},
        concepts=[],
        round="round-001",
    )
    return FusedModel({LAYER: pair}, {"<alice/cat>": torch.randn(7, 2, 8)}, manifest)


def write_model(folder: Path, tensors: dict, model: FusedModel) -> Path:
    """Write a model whose manifest lists its files as they are."""
    save_file(tensors, folder / "adapter.safetensors")
    save_file(dict(model.vocabulary), folder / "embeddings.safetensors")
    files = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        files[path.name] = File(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / "manifest.json").write_text(model.manifest.model_copy(update={"files": files}).model_dump_json())
    return folder


@pytest.fixture
def folder(model, tmp_path) -> Path:
    return write_model(tmp_path, fused_tensors(model), model)


def test_what_is_read_is_what_was_written(model, folder):
    back = read_fused(folder)
    assert back.manifest == model.manifest.model_copy(update={"files": back.manifest.files})
    torch.testing.assert_close(back.changes[LAYER].change(), model.changes[LAYER].change())
    assert torch.equal(back.vocabulary["<alice/cat>"], model.vocabulary["<alice/cat>"])


def test_the_stored_alpha_is_the_rank(folder):
    pair = read_fused(folder).changes[LAYER]
    assert pair.scale == 1
    assert pair.A.dtype == pair.B.dtype == torch.float32


@pytest.mark.parametrize("missing", ["manifest.json", "adapter.safetensors", "embeddings.safetensors"])
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(FusionError, match=f"is not a fused model: {missing} is missing"):
        read_fused(folder)


@pytest.mark.parametrize("how", ["cut", "empty", "noise"])
def test_a_damaged_manifest_is_a_fusion_error(folder, how):
    data = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes({"cut": data[:-3], "empty": b"", "noise": b"\xff" * 40}[how])
    with pytest.raises(FusionError, match=r"is damaged.*again"):
        read_fused(folder)


@pytest.mark.parametrize("damaged", ["adapter.safetensors", "embeddings.safetensors"])
@pytest.mark.parametrize("how", ["cut", "empty", "noise"])
def test_a_changed_file_is_not_what_the_manifest_says(folder, damaged, how):
    data = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes({"cut": data[:-3], "empty": b"", "noise": b"\xff" * 40}[how])
    with pytest.raises(TrustError, match=rf"{damaged} of .* was changed after it was written.*again"):
        read_fused(folder)


@pytest.mark.parametrize("damaged", ["adapter.safetensors", "embeddings.safetensors"])
def test_a_listed_file_that_holds_no_tensors_is_a_fusion_error(model, folder, damaged):
    (folder / damaged).write_bytes(b"\xff" * 40)
    data = {"size": 40, "sha256": hashlib.sha256(b"\xff" * 40).hexdigest()}
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][damaged] = data
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FusionError, match=r"is damaged.*again"):
        read_fused(folder)


def test_half_a_pair_is_a_fusion_error(model, folder):
    for half in "AB":
        tensors = fused_tensors(model)
        del tensors[f"{LAYER}.lora_{half}.weight"]
        write_model(folder, tensors, model)
        with pytest.raises(FusionError, match=f"damaged.*{LAYER}"):
            read_fused(folder)


@pytest.mark.parametrize("change", [{"format": 2}, {"base": "tiny"}, {"surprise": 1}, {"concepts": [{}]}])
def test_a_manifest_of_another_form_is_a_fusion_error(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text()) | change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FusionError, match="is damaged"):
        read_fused(folder)


def test_a_model_of_another_base_is_refused_with_both_fingerprints(model, tiny):
    with pytest.raises(BaseModelError, match=f"{'ab' * 6}.*{tiny.fingerprint[:12]}.*--base"):
        check_base(model, tiny)


def test_a_model_of_this_base_is_welcome(model, tiny):
    check_base(FusedModel({}, {}, model.manifest.model_copy(update={"base": tiny.fingerprint})), tiny)


def test_a_token_is_participant_and_name_or_the_name_alone(sixteen, make_concept):
    concept = make_concept(sixteen, "<cat>")
    assert NamedConcept("alice", concept).token == "<alice/cat>"
    assert NamedConcept("", concept).token == "<cat>"
