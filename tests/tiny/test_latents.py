"""Latents of composed pictures."""

from __future__ import annotations

import json

import numpy as np
import torch

from mos_tiny.recipe.compose import compose, save_pictures
from mos_tiny.recipe.latents import encode, normalise
from mos_tiny.recipe.pictures import as_tensor


def test_normalised_latents_have_mean_0_and_deviation_1_and_pictures_stay(vae, world):
    pictures, _ = compose(world, 40, 64, 5)
    with torch.no_grad():
        vae.quant_conv.weight[:4] *= 3
        vae.quant_conv.bias[:4] += 0.7
        posterior = vae.encode(as_tensor(pictures)).latent_dist
        rebuilt = vae.decode(posterior.mean).sample
        normalise(vae, posterior.mean)
        after = vae.encode(as_tensor(pictures)).latent_dist
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    deviations = posterior.mean.std(dim=(0, 2, 3))[:, None, None]
    torch.testing.assert_close(after.std * deviations, posterior.std, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(vae.decode(after.mean).sample, rebuilt, atol=1e-3, rtol=0)


def test_the_next_step_reads_what_compose_writes(tmp_path, world, vae):
    pictures, captions = compose(world, 3, 64, 0)
    save_pictures(tmp_path, 64, pictures, captions)
    assert json.loads((tmp_path / "train_64.json").read_text()) == captions
    stored = np.load(tmp_path / "train_64.npy", mmap_mode="r", allow_pickle=False)
    assert encode(vae, stored).shape == (3, 4, 16, 16)
