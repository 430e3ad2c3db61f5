"""Latents of composed pictures, on which the UNet is trained.

    python -m mos_tiny.recipe.latents --data DATA --vae RUN/vae --out DATA/latents [--keep]

writes OUT/lat_64.pt and lat_128.pt (float16), the captions beside them, and OUT/vae. It
normalises the latents of a new autoencoder to mean 0 and standard deviation 1 by changing its 1x1
convolutions, so that its scaling factor is 1. `--keep` leaves an autoencoder unchanged that was
normalised before.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from jaxtyping import Float
from torch import Tensor

from mos_common.errors import StateError
from mos_common.shell import OnCount, counting, run, say
from mos_tiny.recipe.compose import WIDTHS
from mos_tiny.recipe.pictures import as_tensor
from mos_tiny.recipe.states import save_state
from mos_tiny.recipe.vae import psnr

BATCH = 100
MEASURED = 2000  # pictures from which mean and standard deviation are computed


@torch.no_grad()
def encode(vae: Any, pictures: np.ndarray, on_count: OnCount | None = None) -> Float[Tensor, "n c h w"]:
    """Return the means of the posteriors, in float16 on the CPU."""
    device, means = next(vae.parameters()).device, []
    for i in range(0, len(pictures), BATCH):
        part = as_tensor(np.array(pictures[i : i + BATCH])).to(device, memory_format=torch.channels_last)
        means.append(vae.encode(part).latent_dist.mean.half().cpu())
        if on_count:
            on_count(min(i + BATCH, len(pictures)), len(pictures), "")
    return torch.cat(means)


@torch.no_grad()
def normalise(vae: Any, latents: Float[Tensor, "n c h w"]) -> None:
    """Change the autoencoder so that latents have mean 0 and deviation 1; pictures stay."""
    mean, deviation = latents.float().mean(dim=(0, 2, 3)), latents.float().std(dim=(0, 2, 3))
    channels = len(mean)
    encoding, decoding = vae.quant_conv, vae.post_quant_conv
    encoding.weight[:channels] /= deviation[:, None, None, None]
    encoding.bias[:channels] = (encoding.bias[:channels] - mean) / deviation
    encoding.bias[channels:] -= 2 * deviation.log()  # the log variance of the posterior
    decoding.bias += decoding.weight[:, :, 0, 0] @ mean
    decoding.weight *= deviation[None, :, None, None]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    epilog="Example: python -m mos_tiny.recipe.latents --data build/tiny --vae build/tiny/vae --out build/tiny/latents"
)
def latents(
    data: Annotated[Path, typer.Option("--data", help="The folder that mos_tiny.recipe.compose wrote.")],
    vae_folder: Annotated[Path, typer.Option("--vae", help="Folder of the autoencoder.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    keep: Annotated[bool, typer.Option("--keep", help="Leave the autoencoder unchanged: it is normalised.")] = False,
    threads: Annotated[int, typer.Option("--threads", help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, …")] = "cpu",
) -> None:
    """Encode the composed pictures."""
    from diffusers import AutoencoderKL

    torch.set_num_threads(threads)
    vae = AutoencoderKL.from_pretrained(vae_folder, low_cpu_mem_usage=False).float().eval()
    try:
        pictures = {width: np.load(data / f"train_{width}.npy", mmap_mode="r", allow_pickle=False) for width in WIDTHS}
    except OSError as error:
        raise StateError(
            f"no pictures in {data}: run `python -m mos_tiny.recipe.compose --out {data}` first"
        ) from error
    if not keep:
        normalise(vae, encode(vae, pictures[WIDTHS[0]][:MEASURED]))
    say(f"reconstruction of composed pictures: {psnr(vae, as_tensor(np.array(pictures[WIDTHS[0]][:256]))):.2f} dB")
    out.mkdir(parents=True, exist_ok=True)
    vae.save_pretrained(out / "vae")
    vae = vae.to(device, memory_format=torch.channels_last)
    for width, stored in pictures.items():
        with counting(f"64 x {width}") as on_count:
            save_state(out / f"lat_{width}.pt", encode(vae, stored, on_count))
        shutil.copyfile(data / f"train_{width}.json", out / f"train_{width}.json")


if __name__ == "__main__":
    run(app)
