"""Modules rest in host memory, and one at a time is on the device, while it runs.

The device of these tests is `meta`, which keeps no values: what rests afterwards is what was there.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mos_common import MixOfShow
from mos_common.base_model import load_base
from mos_common.concept_file import write_concept
from mos_common.edlora import attached
from mos_common.errors import RequestError
from mos_common.pipeline.offload import Offload

META = torch.device("meta")


@pytest.fixture
def base(random_base_folder):
    """A base of its own, which a test may move."""
    return load_base(str(random_base_folder()), device="cpu")


def places(base) -> dict[str, set[str]]:
    """Return the kinds of device on which each part has weights."""
    parts = {"text": base.text_encoder, "unet": base.unet, "vae": base.vae}
    tensors = {name: [*part.parameters(), *part.buffers()] for name, part in parts.items()}
    return {name: {each.device.type for each in of} for name, of in tensors.items()}


def run(base, part: str) -> torch.Tensor:
    """Run one part, on inputs in host memory."""
    latents = torch.zeros(1, 4, 8, 8)
    if part == "text":
        return base.text_encoder(torch.zeros(1, 20, dtype=torch.long)).last_hidden_state
    if part == "unet":
        return base.unet(latents, torch.tensor(5), encoder_hidden_states=torch.zeros(1, 20, 24)).sample
    return (
        base.vae.decode(latents).sample
        if part == "decoder"
        else base.vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.mean
    )


@torch.no_grad()
def test_one_part_is_on_the_device_while_it_runs_and_all_rest_afterwards(base):
    weights = {name: (id(each), each.clone()) for name, each in base.unet.named_parameters()}
    inside, alone = [], {"text": "text", "unet": "unet", "encoder": "vae", "decoder": "vae"}
    offload = Offload(base, META)
    norm = [each for each in base.text_encoder.modules() if isinstance(each, torch.nn.LayerNorm)][-1]
    for module in (norm, base.unet.conv_out, base.vae.decoder, base.vae.encoder):
        module.register_forward_pre_hook(lambda *_: inside.append(places(base)))
    for part in ("text", "unet", "unet", "decoder", "text", "encoder", "unet"):
        assert run(base, part).device == META
        (found,) = inside
        assert found == {name: {"meta" if name == alone[part] else "cpu"} for name in found}, part
        inside.clear()
    offload.rest()
    assert set().union(*places(base).values()) == {"cpu"}
    for name, each in base.unet.named_parameters():
        assert id(each) == weights[name][0]
        assert torch.equal(each, weights[name][1])
    offload.close()
    assert run(base, "unet").device.type == "cpu"


@torch.no_grad()
def test_the_vae_rests_as_soon_as_it_has_decoded(base):
    """Its number format may be changed then: what is at rest is what is changed."""
    offload = Offload(base, META)
    run(base, "decoder")
    assert places(base)["vae"] == {"cpu"}
    offload.close()


@torch.no_grad()
def test_what_is_exchanged_while_a_part_runs_stays_exchanged(base, make_concept):
    weights = dict(base.unet.named_parameters())
    offload, text = Offload(base, META), make_concept(base)
    with attached(base, text.pairs):
        run(base, "unet")
    offload.rest()
    assert {name: id(each) for name, each in base.unet.named_parameters()} == {n: id(w) for n, w in weights.items()}


def test_a_picture_is_the_same_and_all_rest_after_it(base, sixteen, make_concept, tmp_path):
    """Also after an error: a drawing that ends early leaves nothing on the device."""
    write_concept(make_concept(base), tmp_path / "cat.safetensors")
    pipe = MixOfShow.from_pretrained(tmp_path / "cat.safetensors", base=base)
    told = {"prompt": "a <cat>", "seed": 1, "num_inference_steps": 2, "regions": ["<cat> b @ 0,0,0.5,1"]}
    (before,) = pipe(**told).images
    pipe.enable_model_cpu_offload(device="cpu")
    (offloaded,) = pipe(**told).images
    assert np.array_equal(np.asarray(offloaded), np.asarray(before))
    assert pipe._offload.running is None

    def stop(*_: object) -> dict:
        assert pipe._offload.running is base.unet
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        pipe(**told, callback_on_step_end=stop)
    assert pipe._offload.running is None
    with pytest.raises(RequestError, match="call disable_model_cpu_offload first"):
        pipe.to("cpu")
    pipe.disable_model_cpu_offload()
    (after,) = pipe.to("cpu")(**told).images
    assert np.array_equal(np.asarray(after), np.asarray(before))


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_it_is_an_error(sixteen, make_concept, tmp_path):
    write_concept(make_concept(sixteen), tmp_path / "cat.safetensors")
    with pytest.raises(RequestError, match="needs an accelerator, and none is here"):
        MixOfShow.from_pretrained(tmp_path / "cat.safetensors", base=sixteen).enable_model_cpu_offload()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_the_picture_is_that_of_the_gpu(random_base_folder, make_concept, sixteen, tmp_path):
    write_concept(make_concept(sixteen), tmp_path / "cat.safetensors")
    told = {"base": random_base_folder(), "device": "cuda", "dtype": "float32"}
    pipe = MixOfShow.from_pretrained(tmp_path / "cat.safetensors", **told)
    drawing = {"seed": 1, "num_inference_steps": 2, "regions": ["<cat> b @ 0,0,0.5,1"], "output_type": "np"}
    before = pipe("a <cat>", **drawing).images
    pipe.enable_model_cpu_offload()
    np.testing.assert_allclose(pipe("a <cat>", **drawing).images, before, atol=1e-3)
    assert places(pipe.base)["unet"] == {"cpu"}
