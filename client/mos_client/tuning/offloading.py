"""Keep the modules of the base that a tuning step does not need in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from mos_client.tuning.settings import TuningSettings
from mos_common.base_model import Base

OnGpu = Callable[[], AbstractContextManager[None]]


@contextmanager
def offloaded(base: Base, settings: TuningSettings) -> Iterator[OnGpu]:
    """Keep the VAE in host memory within the block; use `with on_gpu():` of what it yields to draw.

    The VAE is not needed since latents are encoded already. The text encoders run at every step
    and stay on the GPU, unless nothing of them is tuned: then each text is encoded once, in host
    memory. On a CPU nothing moves.
    """
    parts: list[nn.Module] = [base.vae]
    if not settings.method.words and not settings.learning_rate_text:
        parts += base.text_encoders
    home = base.device

    def move(device: torch.device) -> None:
        if home.type != "cpu":
            for part in parts:
                part.to(device)

    @contextmanager
    def on_gpu() -> Iterator[None]:
        move(home)
        try:
            yield
        finally:
            move(torch.device("cpu"))

    move(torch.device("cpu"))
    try:
        yield on_gpu
    finally:
        move(home)
