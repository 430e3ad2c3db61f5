"""What can be seen of a drawing on its way: its latents, and the picture that they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mos_common.errors import DrawingError


@dataclass(frozen=True)
class Step:
    """One evaluation of the UNet: `number` of `total`, from 1, and the `latents` after it.

    `read` is what the UNet read at `time` and `predicted` what it said, with guidance; `schedule`
    is ᾱ of every time.
    """

    number: int
    total: int
    latents: Float[Tensor, "n c h w"]
    read: Float[Tensor, "n c h w"]
    predicted: Float[Tensor, "n c h w"]
    prediction_type: str
    time: Float[Tensor, ""] | Int[Tensor, ""]
    schedule: Float[Tensor, times]

    def estimate(self) -> Float[Tensor, "n c h w"]:
        """Return the latents of the picture as the UNet sees it now, without noise.

        What a UNet reads is √ᾱ x + √(1 - ᾱ) ε, whatever its sampler keeps; it says x, ε or
        v = √ᾱ ε - √(1 - ᾱ) x.
        """
        kept = self.schedule[self.time.long().cpu()].to(self.read)
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        if self.prediction_type == "sample":
            return self.predicted
        if self.prediction_type == "v_prediction":
            return signal * self.read - noise * self.predicted
        return (self.read - noise * self.predicted) / signal


OnLatents = Callable[[Step], None]
# Called after each evaluation with its number from 0, its time and the latents; returns the latents
# to go on with, and whether to go on.
AfterStep = Callable[[int, Tensor, Tensor], tuple[Tensor, bool]]


@dataclass
class Finiteness:
    """Watches whether latents stay finite. The device is asked once, at the end."""

    finite: list[Tensor] = field(default_factory=list)

    def look(self, step: Step) -> None:
        """Look at the latents of one step."""
        self.finite.append(torch.isfinite(step.latents).all())

    def check(self, dtype: torch.dtype) -> None:
        """Check that the latents of every step were finite.

        Raises:
            DrawingError: some were not; the message names the first step.

        """
        if self.finite and not (seen := torch.stack(self.finite)).all():
            number = int(seen.logical_not().nonzero()[0]) + 1
            raise _not_finite(f"the latents are not finite from step {number} of {len(seen)} on", _wider(dtype))


def check_picture(pictures: Tensor, dtype: torch.dtype) -> None:
    """Check that pictures decoded in a number format are finite: files would show NaN as black.

    Raises:
        DrawingError: they are not.

    """
    if not torch.isfinite(pictures).all():
        advice = "" if dtype is torch.float32 else "--set vae_float32=true, which decodes the same latents, or "
        said = f"the picture is not finite, though all its latents are (the VAE decoded in {_name(dtype)})"
        raise _not_finite(said, advice + _wider(dtype))


def _not_finite(said: str, advice: str) -> DrawingError:
    return DrawingError(
        f"{said}, so there is no picture to write: try {advice}a lower --guidance or another --set scheduler; if it "
        "stays so, the concept's or the model's changes are too large"
    )


def _wider(dtype: torch.dtype) -> str:
    formats = {torch.float16: "--dtype bfloat16 or float32", torch.bfloat16: "--dtype float32"}
    return f"{formats[dtype]} (it was drawn in {_name(dtype)}), " if dtype in formats else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
