"""A LoRA in kohya's spelling: other loaders predict the noise that ours does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mos_client.importing.lora import pairs_of
from mos_common.base_model import base_path
from mos_common.fused_model import NamedConcept, read_fused
from mos_common.spellings import kohya_name
from mos_server.fusion.fuse import fuse
from mos_server.fusion.methods.average import AverageSettings
from mos_server.models.publish import write_fused
from reference.pipelines import ours, pipeline_of, theirs


@pytest.mark.parametrize("kind", ["tiny", "sixteen", "like_2", "xl"])
def test_diffusers_predicts_the_noise_of_base_and_adapter_with_the_lora(
    kind, request, mixed, quickly, random_base_folder, folder_of_2, tmp_path
):
    """All kinds of layers, of different ranks, and both text encoders are covered."""
    base, xl = request.getfixturevalue(kind), kind == "xl"
    quickly(mixed(base), base, "lora", tmp_path / "lora.safetensors", dtype="float32")
    changes = read_fused(tmp_path / "fused").changes
    assert changes.keys() == {layer.name for layer in base.layout.layers}
    assert len({pair.rank for pair in changes.values()}) > 2
    folders = {"tiny": base_path("tiny"), "like_2": folder_of_2}
    pipeline = pipeline_of(folders.get(kind) or random_base_folder(**({"xl": True} if xl else {})), xl=xl)
    plain = theirs(pipeline)
    torch.testing.assert_close(ours(base, {}), plain, rtol=1e-4, atol=1e-4)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert float((theirs(pipeline) - plain).norm() / plain.norm()) > 0.1
    torch.testing.assert_close(ours(base, changes), theirs(pipeline), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["tiny", "sixteen", "like_2", "xl"])
@pytest.mark.parametrize(("dtype", "exact"), [(None, 1e-3), ("float32", 1e-6)])
def test_the_importer_reads_the_same_changes_back(kind, request, mixed, quickly, tmp_path, dtype, exact):
    base = request.getfixturevalue(kind)
    quickly(mixed(base), base, "lora", tmp_path / "lora.safetensors", dtype)
    tensors, changes = load_file(tmp_path / "lora.safetensors"), read_fused(tmp_path / "fused").changes
    factors = {tensor.dtype for name, tensor in tensors.items() if name.endswith(".weight")}
    assert factors == {torch.float32 if dtype else torch.float16}
    back = pairs_of(tensors, {}, base)
    assert back.keys() == changes.keys()
    for name, pair in changes.items():
        assert float((back[name].change() - pair.change()).norm() / pair.change().norm()) < exact, name


def test_a_lora_of_one_rank_has_scale_one(tiny, make_concept, quickly, tmp_path):
    one = NamedConcept("", make_concept(tiny, rank=2))
    write_fused(fuse(tiny, [one], AverageSettings()), tmp_path / "fused")
    quickly(tmp_path / "fused", tiny, "lora", tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")} == {2.0}
    assert {len(tensor) for name, tensor in tensors.items() if name.endswith(".lora_down.weight")} == {2}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sixteen", "like_2", "xl"])
def test_lycoris_makes_of_every_layer_the_change_that_it_has(kind, request, mixed, quickly, tmp_path):
    lycoris = pytest.importorskip("lycoris.kohya", reason="lycoris-lora is not installed")
    base = request.getfixturevalue(kind)
    quickly(mixed(base), base, "lora", tmp_path / "lora.safetensors", dtype="float32")
    tensors = load_file(tmp_path / "lora.safetensors")
    for layer, pair in read_fused(tmp_path / "fused").changes.items():
        name, expected = kohya_name(layer, base), pair.change()
        kind_of_file, factors = lycoris.get_module(tensors, name)
        module = lycoris.make_module(kind_of_file, factors, name, base.layout.by_name[layer].module)
        found, _ = module.get_diff_weight(1.0)
        torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
