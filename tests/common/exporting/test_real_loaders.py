"""Exports in the loaders of ComfyUI, kohya's sd-scripts and Forge, which no package has.

Each test needs a checkout of the tool in a variable of the environment, and what that tool imports:

    MOS_COMFYUI=… MOS_KOHYA=… MOS_FORGE=… pytest -m slow tests/common/exporting/test_real_loaders.py

They run on miniature bases of the layouts of Stable Diffusion 1.x, 2.1 and XL.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from mos_common.concept_file import read_concept, write_concept
from mos_common.edlora import attached
from mos_common.exporting.single_file import checkpoint_tensors
from mos_common.spellings import kohya_name

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
KINDS = ("sixteen", "like_2", "xl")
UNET = "model.diffusion_model."


def checkout(variable: str, monkeypatch) -> Path:
    """Put a tool's checkout first on the path, as if it were started there."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no checkout of that tool")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "argv", ["test", "--cpu"])
    return Path(folder)


@pytest.fixture
def exported(request, make_concept, quickly, tmp_path):
    """Return (base, concept, folder with cat.safetensors, cat.words, model.safetensors)."""

    def write(kind: str):
        base = request.getfixturevalue(kind)
        write_concept(make_concept(base, "<cat>"), tmp_path / "concept.safetensors", torch.float32)
        source = tmp_path / "concept.safetensors"
        quickly(source, base, "lora", tmp_path / "out" / "cat.safetensors", "float32")
        quickly(source, base, "single-file", tmp_path / "out" / "model.safetensors", "float32")
        return base, read_concept(source), tmp_path / "out"

    return write


def wrapped(state: dict, unet_config: dict) -> SimpleNamespace:
    """A model as far as the tools' tables of LoRA names look at it."""
    config = SimpleNamespace(unet_config=unet_config)
    return SimpleNamespace(state_dict=lambda: state, model_config=config)


def clip_of_comfyui(kind: str, tensors: dict) -> dict:
    from comfy import supported_models

    model = {"sixteen": supported_models.SD15, "like_2": supported_models.SD20, "xl": supported_models.SDXL}[kind]
    return model.process_clip_state_dict(None, dict(tensors))


def with_text_model(encoder: torch.nn.Module) -> torch.nn.Module:
    """Return a text encoder with the attribute in kohya's names, which transformers 5.6 dropped."""
    if hasattr(encoder, "text_model"):
        return encoder
    outer = torch.nn.Module()
    outer.text_model = encoder
    return outer


@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_finds_every_layer_of_a_lora_and_changes_it_as_we_do(kind, exported, monkeypatch):
    checkout("MOS_COMFYUI", monkeypatch)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    from comfy import model_detection

    base, concept, folder = exported(kind)
    model = load_file(folder / "model.safetensors")
    state = {f"diffusion_model.{name.removeprefix(UNET)}": t for name, t in model.items() if name.startswith(UNET)}
    config = model_detection.detect_unet_config(model, UNET)
    keys = comfy.lora.model_lora_keys_unet(wrapped(state, config), {})
    clip = clip_of_comfyui(kind, model)
    keys = comfy.lora.model_lora_keys_clip(wrapped(clip, {}), keys)
    patches = comfy.lora.load_lora(load_file(folder / "cat.safetensors"), keys)
    assert len(patches) == len(concept.pairs)
    for layer, pair in concept.pairs.items():
        target = keys[kohya_name(layer, base)]
        weight = torch.zeros(pair.B.shape[0], pair.A.shape[1])
        changed = comfy.lora.calculate_weight([(1.0, patches[target], 1.0, None, None)], weight, target)
        torch.testing.assert_close(changed, pair.change(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_takes_every_weight_of_a_single_file(kind, exported, monkeypatch):
    """Its own UNet, VAE and CLIP are built from the file, load it strictly, and predict as ours."""
    checkout("MOS_COMFYUI", monkeypatch)
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy import clip_model, model_detection, ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    class SmallGroups(torch.nn.GroupNorm):
        """Its own have 32 groups, which the miniatures' few channels cannot be divided into."""

        def __init__(self, num_groups: int, num_channels: int, **more: object) -> None:
            super().__init__(8 if num_groups == 32 else num_groups, num_channels, **more)

    monkeypatch.setattr(ops.disable_weight_init, "GroupNorm", SmallGroups)
    base, concept, folder = exported(kind)
    model = load_file(folder / "model.safetensors")
    config = model_detection.detect_unet_config(model, UNET)
    heads = base.unet.config.attention_head_dim
    if isinstance(heads, int):
        unet = UNetModel(**config, num_heads=heads, num_head_channels=-1, operations=ops.disable_weight_init)
        unet.load_state_dict({n.removeprefix(UNET): t for n, t in model.items() if n.startswith(UNET)}, strict=True)
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        text = torch.randn(1, 20, base.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(2))
        with torch.no_grad(), attached(base, concept.pairs):
            ours = base.unet(noisy, torch.tensor([500]), encoder_hidden_states=text).sample
            theirs = unet(noisy, torch.tensor([500]), context=text)
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    else:
        assert config["adm_in_channels"] == base.unet.config.projection_class_embeddings_input_dim
    vae, first = base.vae.config, "first_stage_model."
    levels = [width // vae.block_out_channels[0] for width in vae.block_out_channels]
    ddconfig = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "dropout": 0.0}
    ddconfig |= {"ch": vae.block_out_channels[0], "ch_mult": levels, "num_res_blocks": vae.layers_per_block}
    found = {name.removeprefix(first): tensor for name, tensor in model.items() if name.startswith(first)}
    expected = AutoencoderKL(ddconfig={**ddconfig, "attn_resolutions": []}, embed_dim=4).state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    clip = clip_of_comfyui(kind, model)
    for name, encoder in zip(("clip_l", "clip_g") if kind == "xl" else ("clip_",), base.text_encoders, strict=True):
        state = {key.partition(".transformer.")[2]: t for key, t in clip.items() if key.startswith(name)}
        config = {key: getattr(encoder.config, key) for key in ("num_hidden_layers", "hidden_size", "eos_token_id")}
        config |= {"num_attention_heads": 4, "intermediate_size": encoder.config.intermediate_size}
        config |= {"max_position_embeddings": encoder.config.max_position_embeddings, "hidden_act": "gelu"}
        theirs = clip_model.CLIPTextModel(config, torch.float32, "cpu", ops.disable_weight_init).state_dict()
        missing = {key for key in theirs if key not in state and key != "text_projection.weight"}
        assert not missing and not state.keys() - theirs.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_comfyui_reads_the_words(kind, exported, monkeypatch):
    checkout("MOS_COMFYUI", monkeypatch)
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.sd1_clip import load_embed

    _, concept, folder = exported(kind)
    for key, words in zip(("clip_l", "clip_g"), concept.words, strict=False):
        found = load_embed("cat", str(folder / "cat.words"), words.shape[2], key)
        torch.testing.assert_close(found.float(), words.mean(dim=0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_forge_finds_every_layer_of_a_lora(kind, exported, monkeypatch):
    """By the tables that it falls back to, which are of ComfyUI's age."""
    checkout("MOS_FORGE", monkeypatch)
    from packages_3rdparty.comfyui_lora_collection import lora as forge

    base, concept, folder = exported(kind)
    lora = load_file(folder / "cat.safetensors")
    named = {kohya_name(layer, base) for layer in concept.pairs}
    keys = {name: name for name in named}
    patches, left = forge.load_lora(lora, keys)
    assert (set(patches), left) == (named, {})
    for layer, pair in concept.pairs.items():
        kind_of_patch, (up, down, alpha, *_) = patches[kohya_name(layer, base)]
        assert kind_of_patch == "lora"
        torch.testing.assert_close(float(alpha) / len(down) * up @ down, pair.change(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_forge_reads_the_words(kind, exported, monkeypatch):
    checkout("MOS_FORGE", monkeypatch)
    from backend.text_processing.textual_inversion import create_embedding_from_data

    base, concept, folder = exported(kind)
    found = create_embedding_from_data(load_file(folder / "cat.words" / "cat.safetensors"), "cat")
    vectors = [found.vec["clip_l"], found.vec["clip_g"]] if kind == "xl" else [found.vec]
    assert (found.vectors, found.shape) == (2, base.word_width)
    for vector, words in zip(vectors, concept.words, strict=True):
        torch.testing.assert_close(vector, words.mean(dim=0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_kohya_changes_as_many_layers_as_the_concept(kind, exported, monkeypatch):
    """Its network is made from the file, loads it with no key left over, and predicts as we do."""
    checkout("MOS_KOHYA", monkeypatch)
    from networks.lora import create_network_from_weights

    from mos_common.exporting.pipelines import copy_of

    base, concept, folder = exported(kind)
    theirs = copy_of(base)
    encoders = [with_text_model(encoder) for encoder in theirs.text_encoders]
    encoders = encoders if kind == "xl" else encoders[0]
    network, weights = create_network_from_weights(
        1.0, str(folder / "cat.safetensors"), theirs.vae, encoders, theirs.unet, for_inference=True
    )
    assert len(network.text_encoder_loras) + len(network.unet_loras) == len(concept.pairs)
    network.apply_to(encoders, theirs.unet)
    info = network.load_state_dict(weights, strict=False)
    assert (info.missing_keys, info.unexpected_keys) == ([], [])
    if kind != "xl":
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        text = torch.randn(1, 20, base.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(2))
        with torch.no_grad(), attached(base, concept.pairs):
            ours = base.unet(noisy, torch.tensor([500]), encoder_hidden_states=text).sample
            found = theirs.unet(noisy, torch.tensor([500]), encoder_hidden_states=text).sample
        torch.testing.assert_close(found, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["sixteen", "like_2"])
def test_kohya_converts_a_single_file_back(kind, request, monkeypatch):
    """To the names and numbers of diffusers."""
    checkout("MOS_KOHYA", monkeypatch)
    from library import model_util

    base = request.getfixturevalue(kind)
    model = checkpoint_tensors(base, torch.float32)
    is_2 = kind == "like_2"
    unet = model_util.convert_ldm_unet_checkpoint(is_2, dict(model), base.unet.config)
    vae = model_util.convert_ldm_vae_checkpoint(dict(model), base.vae.config)
    if is_2:
        text = model_util.convert_ldm_clip_checkpoint_v2(dict(model), base.text_length)
    else:
        text = model_util.convert_ldm_clip_checkpoint_v1(dict(model))
    for found, module in ((unet, base.unet), (vae, base.vae)):
        expected = module.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name].reshape(t.shape), t) for name, t in expected.items())
    expected = {
        f"text_model.{name.removeprefix('text_model.')}": t for name, t in base.text_encoder.state_dict().items()
    }
    assert expected.keys() <= text.keys()
    assert all(torch.equal(text[name], tensor) for name, tensor in expected.items())
