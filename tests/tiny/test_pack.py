"""The packed base."""

from __future__ import annotations

from mos_common.base_model import load_base
from mos_tiny import base_folder
from mos_tiny.recipe.pack import pack


def test_a_packed_base_is_the_base_again(tiny, tmp_path):
    pack(tmp_path / "base", unet=tiny.unet, text_encoder=tiny.text_encoder, vae=tiny.vae, tokenizer=tiny.tokenizer)
    files = sorted(file.relative_to(base_folder()) for file in base_folder().rglob("*") if file.is_file())
    assert files == sorted(f.relative_to(tmp_path / "base") for f in (tmp_path / "base").rglob("*") if f.is_file())
    assert load_base(str(tmp_path / "base"), device="cpu").fingerprint == tiny.fingerprint
