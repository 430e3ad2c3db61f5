"""A small tuning on random latents: shared settings, examples and initial words."""

from __future__ import annotations

import torch

from mos_client.pictures.examples import Encoded, Example
from mos_client.tuning.loop import Tuning
from mos_client.tuning.memory_plan import Plan
from mos_client.tuning.parameters import initial_words
from mos_client.tuning.settings import Method, TuningSettings

CONFIG = TuningSettings(
    steps=3,
    batch=2,
    learning_rate_words=1e-2,
    learning_rate_text=1e-3,
    learning_rate_unet=1e-3,
    noise_offset=0.1,
    rank=2,
)


def examples(base, count: int = 3) -> list[Example]:
    size, g = base.unet.config.sample_size, torch.Generator().manual_seed(5)
    captions = ("photo of a V", "V")
    return [Example((Encoded(torch.randn(4, size, size, generator=g)),), captions) for _ in range(count)]


def tuning_of(base, config: TuningSettings = CONFIG, plan: Plan | None = None) -> Tuning:
    return Tuning(base, "cat", examples(base), config, plan)


def words_at_start(base, class_word: str = "cat", method: Method = Method.ED_LORA, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return initial_words(base, class_word, method.words, generator, layerwise=method.layerwise)
