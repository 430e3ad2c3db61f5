"""Which adapters are read, and what is said of those that do not fit."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from mos_common.control.adapters import read_adapter
from mos_common.control.condition import Control, check_controls
from mos_common.errors import RequestError
from mos_common.regions import Region
from mos_common.shapes import Box
from reference.control_adapters import picture, write_controlnet, write_t2i


def test_an_adapter_for_another_kind_of_base_is_refused_by_its_features(sixteen, xl, tmp_path):
    of_xl, of_sd = write_t2i(tmp_path / "xl", xl=True), write_t2i(tmp_path / "sd")
    with pytest.raises(RequestError, match=r"adapter xl does not fit .*its features are 16 x \d+ x \d+"):
        read_adapter(of_xl, sixteen)
    with pytest.raises(RequestError, match=r"adapter sd does not fit .*the base adds"):
        read_adapter(of_sd, xl)
    with pytest.raises(RequestError, match="its features are 24 x"):
        read_adapter(write_t2i(tmp_path / "wide", channels=[24, 24, 32, 32]), sixteen)


def test_a_controlnet_of_another_unet_is_refused_by_what_differs(sixteen, xl, tmp_path):
    folder = write_controlnet(tmp_path / "net", xl)
    with pytest.raises(RequestError, match=r"adapter net does not fit .*block_out_channels is \[16, 16, 32\]"):
        read_adapter(folder, sixteen)


@pytest.mark.parametrize(
    ("key", "value"), [("in_channels", 9), ("cross_attention_dim", 768), ("addition_embed_type", "text_time")]
)
def test_a_configuration_that_is_not_the_unets_is_refused_by_its_key(key, value, sixteen, tmp_path):
    folder = write_controlnet(tmp_path / "net", sixteen)
    adapter = read_adapter(folder, sixteen)
    adapter.model.register_to_config(**{key: value})
    from mos_common.control.adapters import _check_controlnet

    with pytest.raises(RequestError, match=f"its {key} is {value}"):
        _check_controlnet(adapter, sixteen)


def test_a_controlnet_that_reads_other_pixels_to_a_cell_is_refused(sixteen, tiny, tmp_path):
    folder = write_controlnet(tmp_path / "net", sixteen, widths=(8, 8, 8))
    with pytest.raises(RequestError, match="it reads 4 pixels to a cell of the latents, and the base has 2"):
        read_adapter(folder, sixteen)


def test_weights_are_read_from_safetensors_only(sixteen, tmp_path):
    folder = write_t2i(tmp_path / "pickled")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(RequestError, match="weights are read from safetensors only"):
        read_adapter(folder, sixteen)


def test_a_variant_in_half_precision_is_read_too(sixteen, tmp_path):
    folder = write_t2i(tmp_path / "half")
    name = "diffusion_pytorch_model"
    (folder / f"{name}.safetensors").rename(folder / f"{name}.fp16.safetensors")
    assert read_adapter(folder, sixteen).channels == 3


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "no adapter at"),
        ("{", "is not the configuration of an adapter"),
        ("[]", "is not the configuration of an adapter"),
        ('{"_class_name": "UNet2DConditionModel"}', "is a 'UNet2DConditionModel': expected a T2IAdapter"),
    ],
)
def test_what_is_no_adapter_is_refused(config, said, sixteen, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(RequestError, match=said):
        read_adapter(tmp_path, sixteen)


def test_damaged_weights_are_refused(sixteen, tmp_path):
    folder = write_t2i(tmp_path / "damaged")
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(RequestError, match="cannot be loaded as a T2IAdapter"):
        read_adapter(folder, sixteen)


def test_the_digest_tells_weights_and_configuration_apart(sixteen, tmp_path):
    folders = [write_t2i(tmp_path / str(seed), seed=seed) for seed in (0, 0, 1)]
    folders = [folders[0], write_t2i(tmp_path / "copy"), folders[2]]
    first, copy, other = (read_adapter(folder, sixteen).digest for folder in folders)
    assert first == copy != other
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    assert read_adapter(folders[0], sixteen).digest != first


def test_a_picture_is_read_in_the_adapters_channels_and_the_drawings_size(sixteen, tmp_path):
    grey = read_adapter(write_t2i(tmp_path / "grey", grey=True), sixteen)
    white = Control(grey, Image.new("RGB", (10, 10), "white")).pixels(32, 64)
    assert white.shape == (1, 1, 32, 64)
    assert torch.equal(white, torch.ones(1, 1, 32, 64))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weight": -1}, "weight -1: expected a number of at least 0"),
        ({"weight": float("nan")}, "weight nan"),
        ({"start": 0.5, "end": 0.5}, "start 0.5 and end 0.5: expected shares of the steps"),
        ({"end": 1.5}, "end 1.5"),
    ],
)
def test_numbers_out_of_their_range_are_refused(given, said, sixteen, tmp_path):
    adapter = read_adapter(write_t2i(tmp_path / "a"), sixteen)
    with pytest.raises(RequestError, match=f"control a: .*{said}"):
        Control(adapter, picture(8, 8), **given)


def test_regions_and_sizes_that_do_not_go_with_a_condition_are_refused(sixteen, tmp_path):
    adapter = read_adapter(write_t2i(tmp_path / "a", downscale_factor=2), sixteen)
    control = Control(adapter, picture(8, 8), region=1)
    with pytest.raises(RequestError, match="control a: no region 2; known: 1 to 1"):
        check_controls([control], [Region("a cat", Box(0, 0, 1, 1))], 32, 32)
    with pytest.raises(RequestError, match="33 x 32 pixels: adapter a reads sizes that are multiples of 2"):
        check_controls([control], [], 32, 33)
    pooled = read_adapter(write_controlnet(tmp_path / "pools", sixteen, global_pool_conditions=True), sixteen)
    with pytest.raises(RequestError, match="it acts everywhere or not at all"):
        Control(pooled, picture(8, 8), region=0)
