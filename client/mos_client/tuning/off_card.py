"""Parts of the base that a step does not need wait in main memory, where a GPU's own is dear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from mos_client.tuning.settings import TuningConfig
from mos_common.base_model import Base

Awake = Callable[[], AbstractContextManager[None]]


@contextmanager
def resting(base: Base, config: TuningConfig) -> Iterator[Awake]:
    """Within: the VAE is off the card (latents are encoded already); what it yields brings it back for a while, to draw.

    The text encoders stay, since they run at every step; unless nothing of them is tuned. Then every text is encoded once, and
    they may do that where they rest.
    """
    parts: list[nn.Module] = [base.vae]
    if not config.method.words and not config.learning_rate_text:
        parts += base.text_encoders
    home = base.device

    def move(where: torch.device) -> None:
        if home.type != "cpu":
            for part in parts:
                part.to(where)

    @contextmanager
    def awake() -> Iterator[None]:
        move(home)
        try:
            yield
        finally:
            move(torch.device("cpu"))

    move(torch.device("cpu"))
    try:
        yield awake
    finally:
        move(home)
