"""The training of the autoencoder, and its measurement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from mos_tiny.recipe.kept import KINDS, kept_pictures
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.vae import VaeTraining, measure, psnr, train


def test_training_the_decoder_alone_leaves_every_latent_as_it_was_and_continues(vae, tmp_path, world):
    pictures = as_tensor(kept_pictures("own styles", each=1, world=world))
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist.mean
    encoder = {name: value.clone() for name, value in vae.state_dict().items() if name.startswith(("encoder", "quant"))}
    decoder = vae.decoder.conv_in.weight.detach().clone()
    train(vae, VaeTraining(minutes=1 / 60, batch=2, learning_rate=1e-4, decoder_only=True), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(pictures).latent_dist.mean, before, rtol=0, atol=1e-4)
    assert encoder and all(torch.equal(vae.state_dict()[name], value) for name, value in encoder.items())
    assert not torch.equal(vae.decoder.conv_in.weight, decoder)
    first = torch.load(tmp_path / "state.pt", weights_only=True)
    train(vae, VaeTraining(minutes=2 / 60, batch=2, learning_rate=1e-4, decoder_only=True), tmp_path)
    second = torch.load(tmp_path / "state.pt", weights_only=True)
    assert second["step"] > first["step"] > 0 and second["seconds"] > first["seconds"]
    written = AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert psnr(written, pictures) == pytest.approx(psnr(vae, pictures), abs=0.01)


def test_reconstruction_in_decibel_is_of_the_mean_square_error(vae, world):
    pictures = as_tensor(kept_pictures("own styles", each=1, world=world))[:3]
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    bytes_off = ((rebuilt - pictures) * 127.5).numpy()
    expected = np.mean([20 * np.log10(255 / np.sqrt((off**2).mean())) for off in bytes_off])
    assert psnr(vae, pictures) == pytest.approx(expected, abs=1e-3)
    assert expected > 26


def test_kept_pictures_are_measured_by_kind(vae, monkeypatch):
    monkeypatch.setattr("mos_tiny.recipe.vae.kept_pictures", lambda kind: kept_pictures(kind, each=1)[:4])
    assert set(measure(vae)) == set(KINDS)
