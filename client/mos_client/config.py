"""The settings of tuning."""

from __future__ import annotations

from dataclasses import dataclass

from mos_common.errors import RequestError
from mos_common.presets import Preset


@dataclass(frozen=True)
class TuningConfig:
    """How one concept is tuned. Learning rates are AdamW's at the first step; they fall linearly to zero.

    `rank` is that of every LoRA pair, alpha equals it. `seed` decides batches, times, noise and initial values.
    """

    steps: int
    batch: int
    learning_rate_words: float
    learning_rate_text: float
    learning_rate_unet: float
    noise_offset: float
    rank: int = 4
    seed: int = 0
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 100_000:
            raise RequestError(f"{self.steps} steps: expected 1 to 100000")
        if not 1 <= self.rank <= 256 or not 1 <= self.batch <= 1024:
            raise RequestError(f"rank {self.rank}, batch {self.batch}: expected rank 1 to 256 and batch 1 to 1024")

    @classmethod
    def of(cls, preset: Preset, *, steps: int | None = None, seed: int = 0, rank: int = 4) -> TuningConfig:
        """The settings of a base's preset; `steps` replaces the preset's."""
        return cls(
            steps=preset.steps if steps is None else steps,
            batch=preset.batch,
            learning_rate_words=preset.learning_rate_words,
            learning_rate_text=preset.learning_rate_text,
            learning_rate_unet=preset.learning_rate_unet,
            noise_offset=preset.noise_offset,
            rank=rank,
            seed=seed,
        )
