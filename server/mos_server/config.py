"""The settings of fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mos_common.errors import RequestError
from mos_common.prompts import ORDINARY, RECORDED

Method = Literal["gradient", "average", "sum"]
Rows = Literal["words", "text", "all"]


@dataclass(frozen=True)
class FusionSettings:
    """How concepts are fused (`solve.py` has the equation).

    ridge: λ, in units of the mean second moment (`ridge_kind` "trace") or of each input's own ("diagonal").
    preserve: μ, the weight of ordinary prompts on the untouched base; 0 is the paper.
    rows: which text positions count: new words and the first end ("words", the paper), all up to it ("text"), padding too ("all").
    text_inputs: cross-attention keys and values read the features of the fused text encoder (the paper) or each concept's own.
    contexts, ordinary: prompts under which concepts and base are recorded.
    steps, guidance: of the sampling that is recorded; guidance 0 is the base's own scale. Only conditional rows are recorded.
    batch: prompts sampled together; more is faster and needs more memory.
    sum_weight: what `sum` multiplies every change with; `average` takes 1/n.
    """

    method: Method = "gradient"
    ridge: float = 0.1
    ridge_kind: Literal["trace", "diagonal"] = "trace"
    preserve: float = 0.3
    rows: Rows = "all"
    text_inputs: Literal["fused", "own"] = "fused"
    contexts: tuple[str, ...] = RECORDED
    ordinary: tuple[str, ...] = ORDINARY
    steps: int = 20
    guidance: float = 0.0
    batch: int = 8
    sum_weight: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.ridge <= 1e3 or not 0 <= self.preserve <= 1e3:
            raise RequestError(
                f"ridge {self.ridge}, preserve {self.preserve}: expected ridge above 0 and preserve 0 or more, both at most 1000"
            )
        if not self.contexts or not 1 <= self.steps <= 1000 or self.batch < 1:
            raise RequestError("fusion needs at least one context, 1 to 1000 steps and a batch of 1 or more")
