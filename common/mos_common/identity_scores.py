"""The four identity numbers of a concept: measured by its owner, then sent and published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from mos_common.errors import ConceptError


@dataclass(frozen=True)
class Identity:
    """Image alignment with pictures held back from tuning: four cosines in [-1, 1].

    class_word: drawings of the class word by the untouched base (the floor).
    single: drawings of the concept on its own.
    fused: drawings by the fused model, with the same prompts and seeds.
    ceiling: other real pictures of the concept, encoded and decoded by the VAE.

    Raises:
        ConceptError: a number is not finite, or outside [-1, 1].

    """

    class_word: float
    single: float
    fused: float
    ceiling: float

    # The manifest is read by pydantic: a fifth number in it is an error.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and -1 <= value <= 1):
                raise ConceptError(f"identity {name} is {value}: expected a finite number from -1 to 1")

    def __str__(self) -> str:
        """Return the numbers as text: "class word 0.100, single 0.600, ..."."""
        return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in vars(self).items())

    @property
    def loss(self) -> float:
        """The loss of identity through fusion."""
        return self.single - self.fused
