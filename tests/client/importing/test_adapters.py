"""Every kind of adapter beside the tool that writes it: LyCORIS and PEFT, by what they draw."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file

from mos_client.importing.import_files import import_files
from mos_client.importing.lora import read_adapter
from mos_common.concept_file import read_concept
from mos_common.errors import ConceptError
from reference.pipelines import ours, pipeline_of, theirs

FULL = 64  # no layer of the random base has more rows or columns that matter: nothing is lost


@torch.no_grad()
def randomise(modules, scale: float = 0.2) -> None:
    """Draw every trainable number at random; magnitudes keep their size."""
    g = torch.Generator().manual_seed(5)
    for module in modules:
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=g)
            if "dora_scale" in name or "magnitude" in name:
                parameter.mul_(1 + 0.2 * noise)
            elif parameter.requires_grad:
                parameter.copy_(scale * noise)


def lycoris_file(folder, path, **settings: object):
    """Let LyCORIS, called as kohya's scripts do, write a file; return the adapted pipeline."""
    kohya = pytest.importorskip("lycoris.kohya")
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    pipeline = pipeline_of(folder)
    preset = str(settings.pop("preset", "attn-mlp"))
    network = kohya.create_network(1.0, 4, 2, None, pipeline.text_encoder, pipeline.unet, preset=preset, **settings)
    network.apply_to(pipeline.text_encoder, pipeline.unet, True, True)
    randomise(network.children())
    network.save_weights(str(path), torch.float32, {})
    return pipeline


def assert_same_noise(base, pairs, pipeline, plain, tolerance: float) -> None:
    expected = theirs(pipeline)
    assert float((expected - plain).norm() / plain.norm()) > 0.02
    assert float((ours(base, pairs) - expected).norm() / (expected - plain).norm()) < tolerance


LYCORIS = {
    "LoCon": {"algo": "lora"},
    "LoHa": {"algo": "loha"},
    "LoKr": {"algo": "lokr", "factor": 2},
    "LoKr of two products": {"algo": "lokr", "factor": 8, "decompose_both": True, "conv_dim": 2},
    "LoKr, whole": {"algo": "lokr", "full_matrix": True},
    "DoRA": {"algo": "lora", "dora_wd": True},
    "DoRA of inputs": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "DoRA of a LoHa": {"algo": "loha", "dora_wd": True},
    "DoRA of a LoKr": {"algo": "lokr", "factor": 4, "dora_wd": True},
    "rank-stabilised": {"algo": "lora", "rs_lora": True},
}


@pytest.mark.parametrize("kind", LYCORIS)
def test_lycoris_draws_the_noise_that_the_import_draws(sixteen, random_base_folder, tmp_path, kind):
    """At a rank that loses nothing; on text encoder and UNet, with an alpha of half the rank."""
    plain = theirs(pipeline_of(random_base_folder()))
    pipeline = lycoris_file(random_base_folder(), tmp_path / "a.safetensors", **LYCORIS[kind])
    concept = import_files(
        [tmp_path / "a.safetensors"],
        concept="<cat>",
        class_word="cat",
        base=sixteen,
        out=tmp_path / "cat.safetensors",
        rank=FULL,
    )
    assert {name.partition(".")[0] for name in concept.pairs} == {"unet", "text_encoder"}
    assert_same_noise(sixteen, concept.pairs, pipeline, plain, 1e-3)
    written = read_concept(tmp_path / "cat.safetensors").pairs
    assert_same_noise(sixteen, written, pipeline, plain, 2e-2)  # of half precision


def test_a_whole_difference_is_imported_beside_lycoris(sixteen, random_base_folder, tmp_path):
    """Biases that were not trained are written as zeros: they are nothing. Others are refused."""
    kohya = pytest.importorskip("lycoris.kohya")
    pipeline, plain = pipeline_of(random_base_folder()), theirs(pipeline_of(random_base_folder()))
    network = kohya.create_network(
        1.0, 4, 2, None, pipeline.text_encoder, pipeline.unet, preset="attn-mlp", algo="full"
    )
    network.apply_to(pipeline.text_encoder, pipeline.unet, True, True)
    with torch.no_grad():
        for number, module in enumerate(network.children()):
            g = torch.Generator().manual_seed(number)
            module.weight.add_(0.05 * torch.randn(module.weight.shape, generator=g))
    network.save_weights(str(tmp_path / "a.safetensors"), torch.float32, {})
    tensors = load_file(tmp_path / "a.safetensors")
    assert any(name.endswith(".diff_b") for name in tensors)
    assert_same_noise(sixteen, read_adapter(tensors, {}, sixteen, rank=FULL).pairs, pipeline, plain, 1e-3)
    name = next(name for name in tensors if name.endswith(".diff_b"))
    with pytest.raises(ConceptError, match=f"{name} is a trained bias"):
        read_adapter(tensors | {name: torch.ones_like(tensors[name])}, {}, sixteen, rank=FULL)


def test_what_a_rank_loses_is_said_as_a_share_of_the_change(sixteen, random_base_folder, tmp_path):
    """The reference is the SVD of LyCORIS' own merged difference, layer by layer."""
    pipeline = lycoris_file(random_base_folder(), tmp_path / "a.safetensors", algo="loha")
    lines: list[str] = []
    concept = import_files(
        [tmp_path / "a.safetensors"],
        concept="<cat>",
        class_word="cat",
        base=sixteen,
        out=tmp_path / "cat.safetensors",
        rank=3,
        report=lines.append,
    )
    squares = {}
    for part, model in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
        for name, module in model.named_modules():
            if (adapter := getattr(getattr(module.forward, "__self__", None), "get_weight", None)) is None:
                continue
            full = f"{part}.{name}" if part == "unet" else f"{part}.text_model.{name.removeprefix('text_model.')}"
            sigma = torch.linalg.svdvals(adapter(module.weight.shape).detach().flatten(1).double())
            squares[full] = (sigma[:3].square().sum(), sigma.square().sum())
    assert squares.keys() == concept.pairs.keys()
    for name, (kept, _) in squares.items():
        assert float(concept.pairs[name].change().square().sum()) == pytest.approx(float(kept), rel=1e-4)
    kept, whole = (sum(float(pair[k]) for pair in squares.values()) for k in (0, 1))
    (line,) = [line for line in lines if "is lost" in line]
    assert line.startswith("rank 3 keeps at least")
    assert f"{100 * kept / whole:.1f} % of all together; {100 - 100 * kept / whole:.1f} % is lost" in line


@pytest.mark.parametrize("algo", ["lora", "loha", "lokr"])
def test_large_convolutions_are_refused_or_left_out_on_request(sixteen, random_base_folder, tmp_path, algo):
    """Of a file that LyCORIS wrote for resnets too, with Tucker cores."""
    preset = tmp_path / "preset.toml"
    preset.write_text(
        'enable_conv = true\nunet_target_module = ["ResnetBlock2D", "Downsample2D"]\nunet_target_name = []\n'
    )
    pipeline = lycoris_file(
        random_base_folder(), tmp_path / "a.safetensors", algo=algo, preset=str(preset), conv_dim=2, use_tucker=True
    )
    tensors = load_file(tmp_path / "a.safetensors")
    assert any("mid" in name or "_t2" in name for name in tensors)
    with pytest.raises(ConceptError, match=r"a convolution larger than 1x1.*--leave-out-convolutions"):
        read_adapter(tensors, {}, sixteen, rank=FULL)
    adapter = read_adapter(tensors, {}, sixteen, rank=FULL, without_convolutions=True)
    left_out = {name: square for name, square in adapter.whole.items() if name not in adapter.pairs}
    for name, square in left_out.items():
        module = pipeline.unet.get_submodule(name.removeprefix("unet."))
        assert tuple(module.weight.shape[2:]) == (3, 3)
        change = adapter_of(module).to(torch.float64)
        assert square == pytest.approx(float(change.square().sum()), rel=1e-4)


def adapter_of(module) -> torch.Tensor:
    """Return the change that LyCORIS' forward adds to the weight of a convolution."""
    adapter = module.forward.__self__
    x = torch.zeros(1, module.in_channels, 3, 3, dtype=torch.float32)
    with torch.no_grad():
        if hasattr(adapter, "get_weight"):
            return adapter.get_weight(module.weight.shape)
        return adapter.make_weight(x.device) * adapter.scale
