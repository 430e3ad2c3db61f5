"""The settings of a recording: prompts, sampling, and the text positions that count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mos_common.errors import RequestError
from mos_common.prompts import ORDINARY, RECORDED
from mos_common.settings import setting

PAPER_PROMPTS = ("photo of a V", "V")
# The weights of concept words with the first end-of-text token, of other text, and of padding.
ROWS: Mapping[str, tuple[float, float, float]] = {
    "words": (1.0, 0.0, 0.0),
    "text": (1.0, 1.0, 0.0),
    "all": (1.0, 1.0, 1.0),
    "graded": (1.0, 0.2, 0.05),
}


@dataclass(frozen=True)
class RecordingSettings:
    """How the activations of concepts and of the base are regenerated."""

    contexts: tuple[str, ...] = setting(
        RECORDED[:4], "prompts that concepts are recorded under; V stands for the concept"
    )
    ordinary: tuple[str, ...] = setting(ORDINARY, "prompts that the untouched base is recorded under")
    rows: str = setting(
        "graded",
        "text positions that count: words (concept words and the first end-of-text token, the paper), text (all up to "
        "it), all (padding too), graded (1, 0.2 and 0.05), or three weights such as 1,1,0.2",
    )
    unconditional: bool = setting(False, "record the empty prompt on each concept's model too")
    steps: int = setting(3, "denoising steps of the sampling that is recorded")
    guidance: float | None = setting(
        1.0, "guidance of the sampling that is recorded (1: no guidance); none: the base's own"
    )
    batch: int = setting(16, "prompts that are sampled together; more is faster and needs more memory")

    def __post_init__(self) -> None:
        if not self.contexts or not self.ordinary:
            raise RequestError("contexts and ordinary need at least one prompt each")
        if not 1 <= self.steps <= 1000 or self.batch < 1:
            raise RequestError(
                f"steps {self.steps}, batch {self.batch}: expected 1 to 1000 steps and a batch of at least 1"
            )
        _ = self.row_weights

    @property
    def row_weights(self) -> tuple[float, float, float]:
        """Weights of concept words with the first end-of-text token, of other text, of padding."""
        if self.rows in ROWS:
            return ROWS[self.rows]
        try:
            words, text, padding = (float(part) for part in self.rows.split(","))
        except ValueError:
            words = text = padding = -1.0
        if min(words, text, padding) < 0 or not 0 < words + text + padding < 1e6:
            raise RequestError(f"rows {self.rows}: expected {', '.join(ROWS)}, or three weights such as 1,1,0.2")
        return words, text, padding
