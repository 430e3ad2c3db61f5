"""A mixed round: an ED-LoRA, kohya LoRAs with and without a trigger, a textual inversion."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file

from mos_client.importing.import_files import import_files
from mos_common.concept_file import write_concept
from mos_common.drawing import Drawing, draw
from mos_common.edlora import attached
from mos_common.fused_model import read_fused
from mos_server.fusion.methods.gradient import GradientSettings
from mos_server.fusion.settings import FusionSettings
from mos_server.models.fuse_files import fuse_files

SETTINGS = FusionSettings(
    GradientSettings(
        ridge=1e-6, preserve=0.0, rows="all", contexts=("V", "photo of a V"), ordinary=("a tree",), steps=2, batch=2
    )
)


@pytest.fixture
def kohya(sixteen, tmp_path):
    """Import a random kohya LoRA on transformers, feed-forwards and convolutions of the UNet."""

    def made(name: str, seed: int, **settings: object):
        g, tensors = torch.Generator().manual_seed(seed), {}
        for layer in sixteen.layout.layers:
            if not layer.name.startswith("unet.") or ".attentions." not in layer.name:
                continue
            key = "lora_" + layer.name.replace(".", "_")
            down = torch.randn(2, layer.d_in, generator=g) / layer.d_in**0.5
            up = torch.randn(layer.d_out, 2, generator=g) * 0.05
            if isinstance(layer.module, torch.nn.Conv2d):
                down, up = down[:, :, None, None], up[:, :, None, None]
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        save_file(tensors, tmp_path / f"{name}.kohya.safetensors")
        out = tmp_path / f"{name}.safetensors"
        files = [tmp_path / f"{name}.kohya.safetensors"]
        import_files(files, concept=f"<{name}>", class_word="dog", base=sixteen, out=out, **settings)
        return out

    return made


@pytest.fixture
def fused(random_base_folder, tmp_path):
    def run(*files):
        settings = {"base": str(random_base_folder()), "settings": SETTINGS, "device": "cpu"}
        return fuse_files(files, tmp_path / "fused", **settings)

    return run


def test_imports_and_ed_lora_fuse_into_one_model_that_draws_each(sixteen, make_concept, kohya, fused, tmp_path, caplog):
    write_concept(make_concept(sixteen, "<cat>", seed=1, strength=0.05), tmp_path / "cat.safetensors")
    save_file({"emb_params": torch.randn(2, 24) * 0.1}, tmp_path / "ti.safetensors")
    hat = tmp_path / "hat.safetensors"
    import_files([tmp_path / "ti.safetensors"], concept="<hat>", class_word="hat", base=sixteen, out=hat)
    files = tmp_path / "cat.safetensors", kohya("rex", 2, trigger="sks dog"), kohya("bo", 3), hat
    with caplog.at_level(logging.WARNING):
        fused(*files)
    assert "called" not in caplog.text, "no two share what they are called by"
    model = read_fused(tmp_path / "fused")
    assert set(model.vocabulary) == {"<cat>", "<rex>", "<bo>", "<hat>"}
    survival = {concept.token: concept.survival for concept in model.manifest.concepts}
    assert survival["<rex>"]["spatial"].energy_kept > 0.3
    assert survival["<cat>"]["spatial"].energy_kept > 0.3
    feed_forwards = [name for name in model.changes if ".ff.net." in name or name.endswith("proj_in")]
    assert len(feed_forwards) == 16 * 3
    ids = sixteen.tokenizer("sks dog", add_special_tokens=False).input_ids
    assert torch.equal(model.vocabulary["<rex>"][0], sixteen.token_table[ids])
    with attached(sixteen, model.changes):
        how = Drawing(steps=1)
        by_name = draw(sixteen, ["a <rex>"], [0], vocabulary=model.vocabulary, how=how)
        by_trigger = draw(sixteen, ["a sks dog"], [0], how=how)
    torch.testing.assert_close(by_name, by_trigger, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("triggers", "called"),
    [(("sks", "sks"), "'sks'"), (("SKS  dog", "sks dog"), "'sks dog'"), (("", ""), "'dog'"), (("dog", ""), "'dog'")],
)
def test_two_imports_that_share_a_trigger_are_reported_before_they_are_fused(
    kohya, fused, monkeypatch, caplog, triggers, called
):
    """Both are named; letters' size and spaces are no difference to the text encoder."""

    def said_first(*_: object) -> None:
        assert "are all called" in caplog.text
        raise KeyboardInterrupt

    named = zip(("rex", "bo"), triggers, strict=True)
    files = [kohya(name, seed, trigger=trigger) for seed, (name, trigger) in enumerate(named)]
    monkeypatch.setattr("mos_server.fusion.statistics.record_group", said_first)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        fused(*files)
    (warning,) = [record.getMessage() for record in caplog.records if "are all called" in record.getMessage()]
    assert "<rex>, <bo> are all called " + called in warning
    assert "--trigger" in warning
