"""The settings of fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mos_common.errors import RequestError
from mos_common.prompts import ORDINARY, RECORDED

Method = Literal["gradient", "average", "sum", "ties", "dare", "custom-diffusion", "lbfgs"]
METHODS: tuple[str, ...] = get_args(Method)
Inputs = Literal["own", "fused"]

# How much new words with the first end, the rest of the text, and the padding count.
ROWS = {"words": (1.0, 0.0, 0.0), "text": (1.0, 1.0, 0.0), "all": (1.0, 1.0, 1.0), "graded": (1.0, 0.2, 0.05)}


@dataclass(frozen=True)
class FusionSettings:
    """How concepts are fused (`solve.py` has the equation, docs/fusion.md what each setting does and why the defaults are these).

    ridge: λ, in units of the mean second moment (`ridge_kind` "trace") or of each input's own ("diagonal").
    towards: c: the ridge pulls towards c times the sum of all changes; 0, the paper, towards no change.
    preserve: μ, how much ordinary prompts on the untouched base count, in units of all concepts together; 0 is the paper.
    rows: which text positions count: new words and the first end ("words", the paper), all up to it ("text"), padding too ("all"),
        the less the less they say of a concept ("graded"); or the weights of the three kinds, such as "1,1,0.2".
    text_inputs: cross-attention keys and values read the features of the fused text encoder (the paper) or each concept's own.
    unet_inputs: the rest of the UNet reads what the concept's own model makes (the paper's text), or what the fused text encoder
        and the fused keys and values make with the concept's own remaining changes (the paper's code).
    unconditional: the empty prompt on the concept's model counts too, in text and, with guidance, in the UNet.
    contexts, ordinary: prompts under which concepts and base are recorded.
    steps, guidance: of the sampling that is recorded; guidance 0 is the base's own scale.
    batch: prompts sampled together; more is faster and needs more memory.
    cap: a concept whose inputs or whose effect on a layer have more than `cap` times the energy that the base has there on ordinary
        prompts counts less by that factor, so that none can drown the others.
    sum_weight: what `sum`, `ties` and `dare` multiply every change with; `average` takes 1/n.
    density: the share of each change's entries that `ties` and `dare` keep.
    """

    method: Method = "gradient"
    ridge: float = 0.03
    ridge_kind: Literal["trace", "diagonal"] = "trace"
    towards: float = 0.5
    preserve: float = 1.0
    rows: str = "graded"
    text_inputs: Inputs = "fused"
    unet_inputs: Inputs = "own"
    unconditional: bool = False
    contexts: tuple[str, ...] = RECORDED
    ordinary: tuple[str, ...] = ORDINARY
    steps: int = 20
    guidance: float = 0.0
    batch: int = 16
    cap: float = 4.0
    sum_weight: float = 0.6
    density: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.ridge <= 1e3 or not 0 <= self.preserve <= 1e3:
            raise RequestError(
                f"ridge {self.ridge}, preserve {self.preserve}: expected ridge above 0 and preserve 0 or more, both at most 1000"
            )
        if not 0 <= self.towards <= 1:
            raise RequestError(f"towards {self.towards}: expected a share from 0 to 1")
        if not self.contexts or not self.ordinary or not 1 <= self.steps <= 1000 or self.batch < 1:
            raise RequestError(
                "fusion needs at least one context and one ordinary prompt, 1 to 1000 steps, a batch of 1"
            )
        if self.text_inputs not in get_args(Inputs) or self.unet_inputs not in get_args(Inputs):
            raise RequestError(f"inputs {self.text_inputs}, {self.unet_inputs}: expected own or fused")
        if self.ridge_kind not in ("trace", "diagonal"):
            raise RequestError(f"ridge kind {self.ridge_kind}: expected trace or diagonal")
        if not self.cap > 0:
            raise RequestError(f"cap {self.cap}: expected a factor above 0")
        if not 0 < self.density <= 1:
            raise RequestError(f"density {self.density}: expected a share above 0, at most 1")
        _ = self.row_weights

    @property
    def row_weights(self) -> tuple[float, float, float]:
        """What `rows` says: the weights of new words with the first end, of other text, and of padding."""
        if self.rows in ROWS:
            return ROWS[self.rows]
        try:
            words, text, padding = (float(part) for part in self.rows.split(","))
        except ValueError:
            words = text = padding = -1.0
        if min(words, text, padding) < 0 or not 0 < words + text + padding < 1e6:
            raise RequestError(f"rows {self.rows}: expected {', '.join(ROWS)}, or three weights such as 1,1,0.2")
        return words, text, padding
